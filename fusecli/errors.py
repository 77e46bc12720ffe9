"""The errors a user can cause. The command line turns each into one line and an exit code."""

LONGEST_LINE = 2000  # characters of an error; names and values in files can be megabytes long


# What numpy says of arrays that no machine could hold.
_TOO_LARGE = ("Maximum allowed dimension exceeded", "array is too big")


def printable(text: str) -> str:
    """Text on one line, whatever a file's name or key contains."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def shortened(text: str, longest: int = 80) -> str:
    """Text with its middle left out where it is longer."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def shown_path(path: str) -> str:
    """What messages call a file: "-" is stdin."""
    return "stdin" if path == "-" else path


def counted(number: int, what: str) -> str:
    """How many of something there are: "1 token", "2,000 tokens"."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


class FuseError(Exception):
    """The data or the machine said no: what is wrong, where, and what to do, in one sentence."""

    exit_code = 1


class UsageError(FuseError):
    """The options contradict each other, whatever the files hold."""

    exit_code = 2


def refuse_empty_name(path: str) -> None:
    """Raises:
    UsageError: a file without a name is asked for.
    """
    if not path:
        raise UsageError("a file's name is empty (an unset shell variable?)")


class StdoutError(OSError):
    """Stdout does not take what is written to it: a full disk behind it, say."""


def out_of_memory(error: BaseException) -> str | None:
    """Why an allocation failed, in Python, numpy or torch; None for any other error.

    Torch raises a RuntimeError, on the CPU and on a GPU; what it says is kept, on one line.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return text or "an allocation failed"
    if isinstance(error, ValueError) and text.startswith(_TOO_LARGE):
        return "an array of so many numbers is not possible"
    lower = text.lower()
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    if isinstance(error, RuntimeError) and any(phrase in lower for phrase in phrases):
        return shortened(
            text.rpartition("DefaultCPUAllocator: ")[2].partition(". Error code")[0], 300
        )
    return None


class FeatureFileError(FuseError):
    """A feature file is missing, damaged, or holds something that is not numbers."""


class PairsError(FuseError):
    """What belongs together cannot be told: a source of pairs is unreadable or ambiguous."""


class ShapeError(FuseError):
    """The shapes of two inputs, or of an input and the weights, do not belong together."""


class WeightsError(FuseError):
    """A weights file lacks something or does not fit the options."""


class DeviceError(FuseError):
    """The device asked for is not on this machine."""


class RayError(FuseError):
    """Ray is not installed, cannot be reached, or its workers do not serve."""


class OutputError(FuseError):
    """The result cannot be written where it was asked for."""


class DiagnosisError(FuseError):
    """--strict is given and there is a diagnosis: the result is not written."""


class MissingExtraError(FuseError):
    """An optional library that this needs is not installed."""
