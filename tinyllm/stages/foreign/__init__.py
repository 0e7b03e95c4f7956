"""Models that came from elsewhere: by their name on a hub, and the settings that fit them."""
