"""The routers of a mixture-of-experts model: found, watched, and told what to choose (see the folder routing/)."""

from tokenscale.models.routing.find import find_routers
from tokenscale.models.routing.record import RoutingRecord
from tokenscale.models.routing.router import Router, watch

__all__ = ["Router", "RoutingRecord", "find_routers", "watch"]
