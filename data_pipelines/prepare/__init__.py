"""The prepare job: from a source to a prepared set, on one machine or on Beam."""
