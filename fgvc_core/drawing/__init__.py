"""What all pages and figures share: SVG elements, and how numbers are written."""
