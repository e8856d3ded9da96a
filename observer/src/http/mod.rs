//! The web side: `/metrics`, the landing page, health. Knows the registry alone.
