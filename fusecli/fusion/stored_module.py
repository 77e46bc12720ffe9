"""Which fusion a weights file holds: what the file says, what options add, what is assumed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusecli.errors import UsageError, WeightsError, shortened
from fusecli.fusion.config import FusionConfig, option_of, refuse_foreign
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.weights_file import WeightsFile

_SWITCHED_OFF = {"norm": ("norm.weight", "norm.bias"), "gate": ("gate",)}


@dataclass(frozen=True)
class StoredModule:
    """A fusion whose parameters lie in a weights file.

    Attributes:
        config: the fusion.
        heads_assumed: H is a guess, because neither the file nor an option says it.
        unused: keys of the file's tensors that are not used, and that no option switched off.
    """

    config: FusionConfig
    heads_assumed: bool = False
    unused: tuple[str, ...] = ()


def module_of(weights: WeightsFile, options: ModuleOptions) -> StoredModule:
    """The fusion that a weights file and the options describe together.

    Args:
        weights: the open file.
        options: what is given of the module; what the file fixes they may only repeat.

    Raises:
        WeightsError: parameters are missing, or of shapes that do not fit, or there are others
            that would change the arithmetic.
        UsageError: an option contradicts the file.
    """
    name, config = weights.name, weights.config
    heads_assumed = config is None and options.heads is None
    if config is None:
        if options.method not in (None, "attention"):
            raise WeightsError(
                f"{name}: does not say what it is, so it is read as attention's: a "
                f"{options.method} is saved with save_module, or made by fusecli init"
            )
        config = _config_from_shapes(weights, options.heads)
    given, own = options.given, config.to_dict()
    for field in ("method", "embed_dim", "num_heads", "layers", "ffn_dim", "rank"):
        if field in given and field in own and given[field] != own[field]:
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
    free = {"residual", "norm", "null_token", "gate", "alpha"} & given.keys()
    config = replace(config, **{field: given[field] for field in free})
    _check_parameters(weights, config)
    return StoredModule(config, heads_assumed, _unused(weights, config, options))


def config_of(weights: WeightsFile, options: ModuleOptions) -> tuple[FusionConfig, bool]:
    """The config of `module_of`, and whether H had to be assumed.

    Raises: as `module_of`.
    """
    found = module_of(weights, options)
    return found.config, found.heads_assumed


def _config_from_shapes(weights: WeightsFile, heads: int | None) -> FusionConfig:
    text, image = weights.shape("text_proj.weight"), weights.shape("image_proj.weight")
    if len(text) != 2 or len(image) != 2 or 0 in text + image:
        raise WeightsError(
            f"{weights.name}: text_proj.weight {list(text)} and image_proj.weight "
            f"{list(image)} must be matrices"
        )
    norm, gate = weights.has("norm.weight"), weights.has("gate")
    H = 8 if heads is None else heads
    return FusionConfig(text[0], H, image[1], text[1], norm=norm, gate=gate)


def _check_parameters(weights: WeightsFile, config: FusionConfig) -> None:
    name, prefix = weights.name, weights.prefix
    expected = config.parameter_shapes()
    anchor = next(iter(expected))
    for parameter, shape in expected.items():
        found = weights.shape(parameter)
        if found != shape:
            raise WeightsError(
                f"{name}: {prefix}{parameter} has shape {list(found)}, expected {list(shape)} "
                f"beside {anchor} {list(weights.shape(anchor))}"
            )
    # A tensor of one of the fusion's own layers (a scale, bias_k, an adapter) changes what the
    # layer computes; a tensor of another layer, such as a head behind the fusion, does not.
    layers = {parameter.partition(".")[0] for parameter in expected if "." in parameter}
    foreign = sorted(
        prefix + parameter
        for parameter in weights.shapes()
        if parameter not in expected and parameter.partition(".")[0] in layers
    )
    if foreign:
        listed = ", ".join(map(shortened, foreign[:5]))
        raise WeightsError(
            f"{name}: holds {listed} besides a fusion's parameters, "
            "which would be left out of the arithmetic"
        )


def _unused(weights: WeightsFile, config: FusionConfig, options: ModuleOptions) -> tuple[str, ...]:
    used = set(config.parameter_shapes())
    for field, parameters in _SWITCHED_OFF.items():
        if getattr(options, field) is False:
            used.update(parameters)
    known = {weights.prefix + parameter for parameter in used}
    return tuple(sorted(key for key in weights.file.tensors if key not in known))
