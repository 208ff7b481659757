"""The prepare job: from a corpus to a prepared set, on one machine or on Beam."""
