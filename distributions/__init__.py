"""Distribution files shipped with the package."""
