"""Views: the random renderings of an image that a representation must not tell apart (paper, section 3)."""

from trainer.views.drawer import ViewDrawer, to_input
from trainer.views.preview import preview_grid

__all__ = ["ViewDrawer", "preview_grid", "to_input"]
