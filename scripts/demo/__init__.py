"""Makes the demo that the package ships."""
