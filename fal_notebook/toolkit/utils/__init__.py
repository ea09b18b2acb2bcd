"""Small helpers of apps, where fal has them."""
