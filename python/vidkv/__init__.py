"""VidKV"""
