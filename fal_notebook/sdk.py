"""`HealthCheck` and `RetryConfig` where fal has them."""

from fal_notebook.app_values import HealthCheck as HealthCheck
from fal_notebook.app_values import RetryConfig as RetryConfig
