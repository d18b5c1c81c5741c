//! Stand-in until the library's own.
#![allow(missing_docs)]
use kvsculpt::cache::Capture; use kvsculpt::cpu::CpuEngine; use kvsculpt::gpu::Selection; use kvsculpt::solver::{Compression, Observer, Request};
#[derive(Debug)] pub struct Machine(CpuEngine);
#[derive(Debug, Clone, Copy)] pub enum Preference { Auto, Gpu, Cpu }
#[derive(Debug)] pub struct Choice { pub notice: Option<String> }
pub fn choose(_: Preference, _: &Selection) -> kvsculpt::Result<Choice> { Ok(Choice { notice: None }) }
impl Choice { pub fn open(&self) -> kvsculpt::Result<Machine> { Ok(Machine(CpuEngine::new())) } }
impl Machine { pub fn name(&self) -> String { "CPU".into() }
 pub fn compress(&mut self, c: &Capture, r: &Request, o: &mut dyn Observer) -> kvsculpt::Result<Compression> { kvsculpt::solver::compress(&mut self.0, c, r, o) } }
