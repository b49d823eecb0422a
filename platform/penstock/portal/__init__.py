"""The portal: what a signed-in person sees and does, server-rendered, over the same services as the API."""
