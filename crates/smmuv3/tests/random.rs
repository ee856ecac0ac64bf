//! The model against a deliberately naive one, on random configurations, tables and transactions.

mod naive;
