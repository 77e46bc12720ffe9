"""The output folder of a batch: results, journal, locks."""
