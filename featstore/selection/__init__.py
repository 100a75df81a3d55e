"""Choose images by their stored features: near to some, unlike others, diverse, without duplicates."""
