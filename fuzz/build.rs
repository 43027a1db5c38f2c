//! The clock and the network of the unit tests are there, and the models.

fn main() {
    println!("cargo::rustc-cfg=test");
    println!("cargo::rerun-if-changed=build.rs");
}
