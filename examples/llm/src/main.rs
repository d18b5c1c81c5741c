//! The program `kvsculpt-llm`.

fn main() {}
