"""Names of mined units: words that CLIP finds in their strongest patches, labels that they tell apart best."""
