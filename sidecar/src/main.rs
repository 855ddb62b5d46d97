//! The `remora` program.

fn main() {}
