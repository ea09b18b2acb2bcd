"""Small helpers of apps, where fal has them."""

from fal_notebook.toolkit.downloads import clone_repository as clone_repository
from fal_notebook.toolkit.downloads import download_file as download_file
from fal_notebook.toolkit.downloads import download_model_weights as download_model_weights
from fal_notebook.toolkit.folders import FAL_MODEL_WEIGHTS_DIR as FAL_MODEL_WEIGHTS_DIR
from fal_notebook.toolkit.folders import FAL_PERSISTENT_DIR as FAL_PERSISTENT_DIR
from fal_notebook.toolkit.folders import FAL_REPOSITORY_DIR as FAL_REPOSITORY_DIR
