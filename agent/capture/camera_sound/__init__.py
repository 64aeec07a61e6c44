"""The sound of cameras and of video files."""
