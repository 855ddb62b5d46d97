//! Writes the JavaScript and the types of a module: what the program `wasm-bindgen` does with `--target web`. An example,
//! because the lock file then keeps it at the version of the crate `wasm-bindgen`, which it must have. In: the module, the
//! folder. Out: files named `remora`.

use std::error::Error;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<(), Box<dyn Error>> {
    let [module, folder] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "MODULE FOLDER")?;
    let mut bindgen = Bindgen::new();
    bindgen.input_path(module).web(true)?.out_name("remora").typescript(true).omit_default_module_path(false);
    bindgen.remove_name_section(true).remove_producers_section(true);
    bindgen.generate(folder)?;
    Ok(())
}
