"""`.tflite` graphs in object form: read, written, rewritten, compared and built."""
