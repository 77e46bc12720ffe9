"""Which fusion a weights file holds: what the file says, what options add, what is assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusecli.errors import FeatureFileError, UsageError, WeightsError, counted, shortened
from fusecli.fusion.config import FusionConfig, option_of, refuse_foreign
from fusecli.fusion.literals import MethodName
from fusecli.fusion.method import Method, Recognised
from fusecli.fusion.methods import all_methods, method_named
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.weights_file import WeightsFile
from fusecli.records import record

# Options that take the place of what a weights file says: they have no parameters of their own, or
# switch some off. What any other option says has to agree with the file.
_REPLACED = frozenset(("residual", "norm", "null_token", "gate", "alpha"))
_SWITCHED_OFF = {"norm": ("norm.weight", "norm.bias"), "gate": ("gate",)}
_IN_WORDS = {
    "residual": "a residual",
    "null_token": "a null token",
    "alpha": "a share alpha of the text other than 0.5",
}


@record
class StoredModule:
    """A fusion whose parameters lie in a weights file.

    Attributes:
        config: the fusion.
        heads_assumed: H is a guess, because neither the file nor an option says it.
        question: what of the training the file cannot say, in words, or "".
        remedy: the options that answer the question.
        unused: keys of the file's tensors that are not used, and that no option switched off.
        zero_biases: parameters that the file does not hold and that are taken as zero.
        bare: the file is an attention alone, and its projections are taken as the identity.
    """

    config: FusionConfig
    heads_assumed: bool = False
    question: str = ""
    remedy: str = ""
    unused: tuple[str, ...] = ()
    zero_biases: tuple[str, ...] = ()
    bare: bool = False

    def notes(self, file: str) -> list[str]:
        """What is left out and what is added, one sentence each.

        Args:
            file: the name of the weights file.
        """
        notes = []
        if self.bare:
            from fusecli.fusion.bare_attention import bare_note

            notes.append(bare_note(file, self.config.embed_dim))
        if self.zero_biases:
            notes.append(f"{file}: has no {', '.join(self.zero_biases)}: taken as zero")
        if self.unused:
            notes.append(unused_note(file, self.unused))
        return notes


def unused_note(file: str, keys: Sequence[str]) -> str:
    """That tensors of a weights file are not used.

    Args:
        file: its name.
        keys: of the tensors, at least one.
    """
    if "head.input.image_mean" in keys:  # of a training run; its standardisation is folded in
        head = [key for key in keys if key.startswith("head.")]
        keys = [key for key in keys if key not in head]
        said = (
            f"{file}: the head of the training run (head.*, {counted(len(head), 'tensor')}) makes "
            "answers of the fused rows and is not used here"
        )
        return f"{said}; {unused_note(file, keys)}" if keys else said
    listed = ", ".join(shortened(key) for key in keys[:5])
    more = f" and {counted(len(keys) - 5, 'more tensor')}" if len(keys) > 5 else ""
    verb = "is" if len(keys) == 1 else "are"
    return f"{file}: {listed}{more} {verb} no part of the fusion and {verb} not used"


def module_of(
    weights: WeightsFile, options: ModuleOptions, image_dim: int | None = None
) -> StoredModule:
    """The fusion that a weights file and the options describe together.

    Args:
        weights: the open file.
        options: what is given of the module; what the file fixes they may only repeat.
        image_dim: Di of the features, or None where there are none; the state dict of a concat
            does not say it.

    Raises:
        WeightsError: parameters are missing, or of shapes that do not fit, or there are others
            that would change the arithmetic.
        UsageError: an option contradicts the file.
    """
    name, config = weights.name, weights.config
    heads_assumed, question, remedy = False, "", ""
    if config is None:
        recognised, method = _recognised(weights, options.method, image_dim)
        if options.method is None and not method.gives_weights:
            _refuse_attention(weights, method.name)
        has_heads = "num_heads" in method.fields
        heads_assumed = has_heads and options.heads is None
        fields = recognised.fields
        if has_heads and options.heads is not None:
            fields = {**fields, "num_heads": options.heads}
        config = FusionConfig(method=method.name, **fields)
        question, remedy = _open_question(recognised, method, options)
    given, own = options.given, config.to_dict()
    for field in sorted(given, key=lambda field: field != "method"):
        if field in own and field not in _REPLACED and given[field] != own[field]:
            raise UsageError(
                f"{option_of(field)} {given[field]} contradicts {name}, which has {own[field]}"
            )
    refuse_foreign(config.method, given)
    for field, parameter in (("norm", "norm.weight"), ("gate", "gate")):
        if getattr(options, field) and not getattr(config, field):
            raise WeightsError(
                f"{name}: has no {parameter}: --{field} needs weights made with it "
                f"(fusecli init --{field})"
            )
    config = replace(config, **{field: given[field] for field in _REPLACED & given.keys()})
    sources = _checked_sources(weights, config)
    zero = tuple(parameter for parameter, stored in sources.items() if not stored)
    unused = _unused(weights, sources, options)
    bare = weights.bare
    return StoredModule(config, heads_assumed, question, remedy, unused, zero, bare)


def _recognised(
    weights: WeightsFile, named: str | None, image_dim: int | None
) -> tuple[Recognised, Method]:
    """The method whose parameters a state dict without metadata has."""
    shapes = weights.shapes()
    methods = all_methods() if named is None else [method_named(named)]
    for method in methods:
        found = method.recognise(shapes, image_dim)
        if found is not None:
            return found, method
    if named not in (None, "attention"):
        raise WeightsError(
            f"{weights.name}: does not say what it is, and its tensors are not known as those of a "
            f"{named}: such a module is saved with save_module, or made by fusecli init"
        )
    if "projection.weight" in shapes and "text_proj.weight" not in shapes:
        raise WeightsError(
            f"{weights.name}: does not say how wide the image and the text of its "
            "projection.weight are: save the module with save_module"
        )
    text, image = weights.shape("text_proj.weight"), weights.shape("image_proj.weight")
    weights.shape("attention.in_proj_weight")
    raise WeightsError(
        f"{weights.name}: text_proj.weight {list(text)} and image_proj.weight "
        f"{list(image)} must be matrices"
    )


def _open_question(
    recognised: Recognised, method: Method, options: ModuleOptions
) -> tuple[str, str]:
    """What the state dict cannot say and no option says, and the options that say it."""
    unknown = [field for field in recognised.unknown if field not in options.given]
    words = [_IN_WORDS[field] for field in unknown]
    remedies = [
        option_of(field)
        if field == "alpha"
        else f"{option_of(field)} or {option_of(field).replace('--', '--no-')}"
        for field in unknown
    ]
    if recognised.by_method and options.method is None:
        words.append(recognised.open_question)
        remedies.append(f"--method {method.name}")
    elif words and not recognised.by_method:
        words.append(recognised.open_question)
    return ", or ".join(words), ", and ".join(remedies)


def _checked_sources(weights: WeightsFile, config: FusionConfig) -> dict[str, tuple[str, ...]]:
    """The stored tensors that each parameter is made of.

    Raises:
        WeightsError, FeatureFileError: one is missing or does not fit, or others would change
            what is computed.
    """
    name, prefix = weights.name, weights.prefix
    expected = config.parameter_shapes()
    anchor = next(iter(expected))
    sources: dict[str, tuple[str, ...]] = {}
    for parameter, shape in expected.items():
        found = weights.shape(parameter)
        if found != shape:
            raise WeightsError(
                f"{name}: {prefix}{parameter} has shape {list(found)}, expected {list(shape)} "
                f"beside {anchor} {list(weights.shape(anchor))}"
            )
        sources[parameter] = weights.sources(parameter)
        for source in sources[parameter]:
            stored = weights.file.tensors[prefix + source]
            if stored.source.problem is None and not _is_float(stored.dtype):
                raise FeatureFileError(
                    f"{stored.where}: holds {stored.dtype}, quantised or rounded weights, and "
                    "would be read as whole numbers: save the weights as floating-point numbers "
                    "(multiplied by their scale)"
                )
    # A tensor of one of the fusion's own layers (a scale, bias_k, an adapter) changes what the
    # layer computes; a tensor of another layer, such as a head behind the fusion, does not.
    layers = {parameter.partition(".")[0] for parameter in expected if "." in parameter}
    used = {source for stored_as in sources.values() for source in stored_as}
    foreign = sorted(
        prefix + parameter
        for parameter in weights.shapes()
        if parameter not in used and parameter.partition(".")[0] in layers
    )
    if foreign:
        listed = ", ".join(map(shortened, foreign[:5]))
        raise WeightsError(
            f"{name}: holds {listed} besides a fusion's parameters, "
            "which would be left out of the arithmetic"
        )
    return sources


def _refuse_attention(weights: WeightsFile, method: MethodName) -> None:
    """A state dict that looks like a method without attention must not hold attention.

    Raises:
        WeightsError: it does, in a layer of another name.
    """
    for key in weights.shapes():
        layer, _, last = key.rpartition(".")
        if last in ("in_proj_weight", "q_proj_weight"):
            raise WeightsError(
                f"{weights.name}: its text_proj and image_proj are those of a {method}, and it "
                f"holds the weights of an attention, {shortened(key)}, which would be left out: "
                f"call that layer attention (now {layer or 'without a name'}), or say --method "
                f"{method}"
            )


def _unused(
    weights: WeightsFile, sources: Mapping[str, tuple[str, ...]], options: ModuleOptions
) -> tuple[str, ...]:
    used = {source for stored_as in sources.values() for source in stored_as}
    for field, parameters in _SWITCHED_OFF.items():
        if getattr(options, field) is False:
            used.update(parameters)
    known = {weights.prefix + parameter for parameter in used}
    return tuple(sorted(key for key in weights.file.tensors if key not in known))


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
