//! Encodings against literals from the specification, and round trips.

mod command;
mod event;
mod queue;
mod register;
mod structure;
