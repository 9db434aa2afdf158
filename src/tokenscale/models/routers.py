"""The routers of a mixture-of-experts model: found, watched, and told what to choose (see the folder routing/)."""

from tokenscale.models.routing.find import find_routers
from tokenscale.models.routing.record import RoutingRecord
from tokenscale.models.routing.router import Router, no_noise, no_ranks, watch

__all__ = ["Router", "RoutingRecord", "find_routers", "no_noise", "no_ranks", "watch"]
