"""From a recipe's parameters to the numbers that are searched, and back to a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenscale.core.model import LanguageModel
from tokenscale.experiments.tuning_search import Dimension
from tokenscale.pipeline import Pipeline
from tokenscale.recipe_tune import BoundsSection, place_of, with_values
from tokenscale.token_level.roe_options import NoisyRows


@dataclass(frozen=True)
class Space:
    """What is searched of one arm. `pipeline` is the arm with its defaults written out.

    `parameters` maps each parameter to its dimensions, in the order of the recipe; one that has a number per MoE layer
    has an entry for each of the model's layers, None where the layer is clean.
    """

    pipeline: Pipeline
    parameters: dict[str, Dimension | tuple[Dimension | None, ...]]
    own: dict[str, Any]

    @property
    def dimensions(self) -> list[Dimension]:
        found: list[Dimension] = []
        for entry in self.parameters.values():
            found += [entry] if isinstance(entry, Dimension) else [layer for layer in entry if layer is not None]
        return found

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arm's arguments for values of all dimensions; clean layers have tau 0."""
        found: dict[str, Any] = {}
        for name, entry in self.parameters.items():
            if isinstance(entry, Dimension):
                found[name] = values[entry.name]
            else:
                found[name] = tuple(0.0 if layer is None else float(values[layer.name]) for layer in entry)
        return found

    def build(self, values: Mapping[str, Any]) -> Pipeline:
        """The arm with these values."""
        return with_values(self.pipeline, self.arguments(values))

    @property
    def noise(self) -> str | None:
        """The parameter that is RoE's tau, where it is searched."""
        for name in self.parameters:
            index, parameter = place_of(self.pipeline, name)
            if parameter == "tau" and isinstance(self.pipeline[index], NoisyRows):
                return name
        return None


def space_of(pipeline: Pipeline, parameters: Mapping[str, BoundsSection], lm: LanguageModel) -> Space:
    """The space of one arm in a model. Raises what `Pipeline.check` does, for the arm and for each extreme value."""
    written = pipeline.resolved()
    written.check(lm)
    found: dict[str, Dimension | tuple[Dimension | None, ...]] = {}
    own: dict[str, Any] = {}
    for name, bounds in parameters.items():
        index, parameter = place_of(written, name)
        stage = written[index]
        if bounds.per_layer:
            assert isinstance(stage, NoisyRows)
            found[name] = layers = _layers(name, bounds, stage, lm.shape.moe_layers)
            taus = stage.taus(lm.shape.moe_layers)
            own |= {layer.name: tau for layer, tau in zip(layers, taus, strict=True) if layer is not None}
        else:
            value = getattr(stage, parameter)
            found[name] = dimension = _dimension(name, bounds, value)
            own[name] = float(value) if type(value) is int and type(dimension.low) is float else value
    space = Space(written, found, own)
    _check_extremes(space, parameters, lm)
    return space


def _layers(name: str, bounds: BoundsSection, stage: NoisyRows, moe_layers: int) -> tuple[Dimension | None, ...]:
    noisy = range(stage.clean_layers, moe_layers - stage.clean_layers)
    low, high = float(bounds.low), float(bounds.high)
    return tuple(
        Dimension(f"{name}[{layer}]", low, high, bounds.log) if layer in noisy else None for layer in range(moe_layers)
    )


def _dimension(name: str, bounds: BoundsSection, own: object) -> Dimension:
    """Whole numbers where both bounds are, and the arm's own value is or says nothing."""
    if bounds.choices is not None:
        return Dimension(name, choices=bounds.choices)
    if type(bounds.low) is int and type(bounds.high) is int and (own is None or type(own) is int):
        return Dimension(name, bounds.low, bounds.high, bounds.log)
    return Dimension(name, float(bounds.low), float(bounds.high), bounds.log)


def _check_extremes(space: Space, parameters: Mapping[str, BoundsSection], lm: LanguageModel) -> None:
    for name, bounds in parameters.items():
        entry = space.parameters[name]
        for value in bounds.extremes:
            several = None if isinstance(entry, Dimension) else tuple(0.0 if one is None else value for one in entry)
            with_values(space.pipeline, {name: value if several is None else several}).check(lm)
