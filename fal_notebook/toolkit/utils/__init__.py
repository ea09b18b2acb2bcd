"""Small helpers of apps, where fal has them."""

from fal_notebook.toolkit.utils.download_utils import *  # noqa: F403
