//! Software that does nothing wrong.
