//! Encodings of what software and the SMMU share: structures in memory, queue records, registers.
