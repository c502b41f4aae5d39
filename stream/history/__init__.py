"""The history of a service, checked from its topics alone: was every promise kept?"""
