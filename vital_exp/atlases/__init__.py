"""The atlas: all units of a network, with their pictures, images, measures and neighbours, in one folder."""
