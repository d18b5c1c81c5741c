//! Whether all invocations of a workgroup reach the same barriers: naga does not ask.
//!
//! A barrier or subgroup operation must be reached by all invocations of a workgroup or by none. The rule checked here is
//! WGSL's, a little coarser: a value is *uniform* if it is certain to be the same in all invocations of a workgroup, and so
//! is the way through the program while every condition on it was uniform. A local variable is uniform if every store to it
//! stores a uniform value on a uniform way. All start out as uniform and the function is walked again and again until
//! nothing more turns out not to be.
//!
//! The same is asked once more of subgroups, which operations on cooperative matrices must be reached by as a whole, with the same
//! places in memory: there the number of the subgroup is uniform too.

use std::collections::{BTreeMap, HashMap, HashSet};

use wgpu::naga::{
    AddressSpace, Binding, Block, BuiltIn, CooperativeData, EntryPoint, Expression, Function, Handle, LocalVariable, Module, Span,
    Statement, StorageAccess, TypeInner,
};

/// A barrier that some invocations of a workgroup may miss, or an operation on matrices that some of a subgroup may.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) span: Span,
    pub(super) message: String,
}

/// Whose invocations a value is to be the same in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Workgroup,
    Subgroup,
}

/// The faults of an entry point and of all it calls, in the order of the text.
pub(super) fn check(module: &Module, entry: &EntryPoint) -> Vec<Fault> {
    let mut faults = BTreeMap::new();
    for scope in [Scope::Workgroup, Scope::Subgroup] {
        let mut program = Program {
            module,
            scope,
            known: HashMap::new(),
            faults,
        };
        let arguments = entry
            .function
            .arguments
            .iter()
            .map(|argument| is_builtin_uniform(scope, argument.binding.as_ref()));
        program.walk_function(&entry.function, arguments.collect(), true);
        faults = program.faults;
    }
    faults.into_values().collect()
}

fn is_builtin_uniform(scope: Scope, binding: Option<&Binding>) -> bool {
    match binding {
        Some(Binding::BuiltIn(BuiltIn::WorkGroupId | BuiltIn::NumWorkGroups | BuiltIn::WorkGroupSize)) => true,
        Some(Binding::BuiltIn(BuiltIn::SubgroupId)) => scope == Scope::Subgroup,
        _ => false,
    }
}

/// How a function is called: which arguments are uniform, and whether the way to the call is.
type Call = (Handle<Function>, Vec<bool>, bool);

struct Program<'a> {
    module: &'a Module,
    scope: Scope,
    /// Whether the value that a call returns is uniform.
    known: HashMap<Call, bool>,
    /// By place in the text: a function called twice is reported once.
    faults: BTreeMap<usize, Fault>,
}

impl<'a> Program<'a> {
    /// Returns whether the function's value is uniform.
    fn walk_function(&mut self, function: &'a Function, arguments: Vec<bool>, uniform: bool) -> bool {
        let mut walk = Walk {
            program: self,
            function,
            arguments,
            divergent_locals: HashSet::new(),
            divergent_loops: Vec::new(),
            results: HashMap::new(),
            enclosing: Vec::new(),
            loops_met: 0,
            returned: false,
            returns_uniform: true,
            changed: false,
            reporting: false,
        };
        loop {
            walk.pass(uniform);
            if !walk.changed {
                break;
            }
        }
        walk.reporting = true;
        walk.pass(uniform);
        walk.returns_uniform
    }

    fn call(&mut self, handle: Handle<Function>, arguments: Vec<bool>, uniform: bool) -> bool {
        let call = (handle, arguments, uniform);
        if let Some(&known) = self.known.get(&call) {
            return known;
        }
        let function = &self.module.functions[handle];
        let value = self.walk_function(function, call.1.clone(), uniform);
        self.known.insert(call, value);
        value
    }
}

/// A loop or switch around the statement at hand, and whether some invocations may have left it.
struct Enclosing {
    is_loop: bool,
    left: bool,
}

/// One function on one kind of call.
struct Walk<'p, 'a> {
    program: &'p mut Program<'a>,
    function: &'a Function,
    arguments: Vec<bool>,
    /// Locals found not to be uniform.
    divergent_locals: HashSet<Handle<LocalVariable>>,
    /// By the order in which loops are met: whether some invocations may leave one before others.
    divergent_loops: Vec<bool>,
    /// Values that calls return.
    results: HashMap<Handle<Expression>, bool>,
    enclosing: Vec<Enclosing>,
    loops_met: usize,
    /// Whether some invocations may have returned.
    returned: bool,
    returns_uniform: bool,
    changed: bool,
    reporting: bool,
}

impl<'a> Walk<'_, 'a> {
    fn pass(&mut self, uniform: bool) {
        self.loops_met = 0;
        self.returned = false;
        self.changed = false;
        self.walk(&self.function.body, uniform);
    }

    /// Whether the way to here is uniform, where the conditions around it are so (`conditions`).
    fn is_way_uniform(&self, conditions: bool) -> bool {
        conditions && !self.returned && !self.enclosing.iter().any(|around| around.left)
    }

    fn walk(&mut self, block: &'a Block, conditions: bool) {
        for (statement, &span) in block.span_iter() {
            let uniform = self.is_way_uniform(conditions);
            match statement {
                Statement::Block(inner) => self.walk(inner, conditions),
                Statement::If { condition, accept, reject } => {
                    let conditions = conditions && self.is_uniform(*condition);
                    self.walk(accept, conditions);
                    self.walk(reject, conditions);
                }
                Statement::Switch { selector, cases } => {
                    let conditions = conditions && self.is_uniform(*selector);
                    self.enclosing.push(Enclosing {
                        is_loop: false,
                        left: false,
                    });
                    for case in cases {
                        self.walk(&case.body, conditions);
                    }
                    self.enclosing.pop();
                }
                Statement::Loop {
                    body,
                    continuing,
                    break_if,
                } => self.walk_loop(body, continuing, *break_if, conditions),
                Statement::Break if !uniform => self.leave(false),
                Statement::Continue if !uniform => self.leave(true),
                Statement::Return { value } => self.walk_return(*value, uniform),
                Statement::Store { pointer, value } if !(uniform && self.is_uniform(*value) && self.is_uniform(*pointer)) => {
                    self.diverge(*pointer);
                }
                Statement::Call {
                    function,
                    arguments,
                    result,
                } => self.walk_call(*function, arguments, *result, uniform),
                Statement::ControlBarrier(_) => self.require(uniform, span, "a barrier"),
                Statement::WorkGroupUniformLoad { pointer, .. } => {
                    let same = self.is_uniform(*pointer);
                    self.require(uniform && same, span, "workgroupUniformLoad");
                }
                Statement::SubgroupBallot { .. } | Statement::SubgroupGather { .. } | Statement::SubgroupCollectiveOperation { .. } => {
                    self.require(uniform, span, "a subgroup operation");
                }
                Statement::Emit(range) => range.clone().for_each(|expression| self.walk_matrices(expression, uniform)),
                Statement::CooperativeStore { data, .. } => self.require_matrix(data, uniform, span),
                _ => {}
            }
        }
    }

    fn walk_loop(&mut self, body: &'a Block, continuing: &'a Block, break_if: Option<Handle<Expression>>, conditions: bool) {
        let number = self.loops_met;
        self.loops_met += 1;
        if self.divergent_loops.len() <= number {
            self.divergent_loops.resize(number + 1, false);
        }
        // Those that leave a turn early are missing in the next turn from its beginning.
        self.enclosing.push(Enclosing {
            is_loop: true,
            left: self.divergent_loops[number],
        });
        self.walk(body, conditions);
        self.walk(continuing, conditions);
        if break_if.is_some_and(|condition| !self.is_uniform(condition)) {
            self.leave(true);
        }
        // After the loop all are together again, but for those that returned.
        if self.enclosing.pop().is_some_and(|around| around.left) && !self.divergent_loops[number] {
            self.divergent_loops[number] = true;
            self.changed = true;
        }
    }

    /// Some invocations leave the innermost loop (or switch, unless they go past it).
    fn leave(&mut self, past_switches: bool) {
        for around in self.enclosing.iter_mut().rev() {
            around.left = true;
            if around.is_loop || !past_switches {
                break;
            }
        }
    }

    fn walk_return(&mut self, value: Option<Handle<Expression>>, uniform: bool) {
        let is_value_uniform = value.is_none_or(|value| self.is_uniform(value));
        self.returns_uniform &= uniform && is_value_uniform;
        if !uniform {
            self.returned = true;
            self.enclosing.iter_mut().for_each(|around| around.left = true);
        }
    }

    fn walk_call(&mut self, callee: Handle<Function>, given: &[Handle<Expression>], result: Option<Handle<Expression>>, uniform: bool) {
        let mut arguments = Vec::with_capacity(given.len());
        for (&argument, parameter) in given.iter().zip(&self.program.module.functions[callee].arguments) {
            let is_pointer = matches!(self.program.module.types[parameter.ty].inner, TypeInner::Pointer { .. });
            if is_pointer {
                // What the callee stores there is not followed.
                self.diverge(argument);
            }
            arguments.push(!is_pointer && self.is_uniform(argument));
        }
        let value = self.program.call(callee, arguments, uniform);
        if let Some(result) = result {
            self.results.insert(result, value);
        }
    }

    /// Loads and products of matrices are expressions, computed where a statement says so.
    fn walk_matrices(&mut self, expression: Handle<Expression>, uniform: bool) {
        let span = self.function.expressions.get_span(expression);
        match &self.function.expressions[expression] {
            Expression::CooperativeLoad { data, .. } => self.require_matrix(data, uniform, span),
            Expression::CooperativeMultiplyAdd { .. } => self.require_of(Scope::Subgroup, uniform, span, "a product of matrices"),
            _ => {}
        }
    }

    fn require_matrix(&mut self, data: &CooperativeData, uniform: bool, span: Span) {
        let same = self.is_uniform(data.pointer) && self.is_uniform(data.stride);
        self.require_of(Scope::Subgroup, uniform && same, span, "a matrix");
    }

    fn require(&mut self, holds: bool, span: Span, what: &str) {
        self.require_of(Scope::Workgroup, holds, span, what);
    }

    fn require_of(&mut self, scope: Scope, holds: bool, span: Span, what: &str) {
        if self.reporting && self.program.scope == scope && !holds {
            let whose = match scope {
                Scope::Workgroup => "workgroup",
                Scope::Subgroup => "subgroup",
            };
            let message = format!("{what} that some invocations of a {whose} may miss, or meet in another turn of a loop");
            let place = span.to_range().map_or(0, |range| range.start);
            self.program.faults.entry(place).or_insert(Fault { span, message });
        }
    }

    /// The local variable that a pointer leads to is not uniform from now on.
    fn diverge(&mut self, pointer: Handle<Expression>) {
        if let Expression::LocalVariable(local) = self.function.expressions[self.root(pointer)] {
            self.changed |= self.divergent_locals.insert(local);
        }
    }

    fn root(&self, pointer: Handle<Expression>) -> Handle<Expression> {
        match self.function.expressions[pointer] {
            Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => self.root(base),
            _ => pointer,
        }
    }

    /// Whether a value is the same in all invocations; of a pointer, whether it leads to the same place.
    fn is_uniform(&self, expression: Handle<Expression>) -> bool {
        let is = |expression| self.is_uniform(expression);
        match &self.function.expressions[expression] {
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::Override(_)
            | Expression::ZeroValue(_)
            | Expression::ArrayLength(_)
            | Expression::GlobalVariable(_)
            | Expression::LocalVariable(_)
            | Expression::WorkGroupUniformLoadResult { .. } => true,
            Expression::Compose { components, .. } => components.iter().all(|&component| is(component)),
            Expression::Access { base, index } => is(*base) && is(*index),
            Expression::AccessIndex { base, index } => self.is_member_uniform(*base, *index).unwrap_or_else(|| is(*base)),
            Expression::Splat { value, .. } => is(*value),
            Expression::Swizzle { vector, .. } => is(*vector),
            Expression::FunctionArgument(place) => self.arguments.get(*place as usize).copied().unwrap_or(false),
            Expression::Load { pointer } => self.is_memory_uniform(*pointer) && is(*pointer),
            Expression::Unary { expr, .. } | Expression::As { expr, .. } => is(*expr),
            Expression::Binary { left, right, .. } => is(*left) && is(*right),
            Expression::Select { condition, accept, reject } => is(*condition) && is(*accept) && is(*reject),
            Expression::Relational { argument, .. } => is(*argument),
            Expression::Math { arg, arg1, arg2, arg3, .. } => is(*arg) && [arg1, arg2, arg3].into_iter().flatten().all(|&more| is(more)),
            Expression::CallResult(_) => self.results.get(&expression).copied().unwrap_or(true),
            // Subgroups are smaller than workgroups; atomics answer each invocation differently.
            _ => false,
        }
    }

    /// A member of a struct that gathers an entry point's builtins, if that is what `base` is.
    fn is_member_uniform(&self, base: Handle<Expression>, index: u32) -> Option<bool> {
        let Expression::FunctionArgument(place) = self.function.expressions[base] else {
            return None;
        };
        let argument = self.function.arguments.get(place as usize)?;
        let TypeInner::Struct { members, .. } = &self.program.module.types[argument.ty].inner else {
            return None;
        };
        let binding = members.get(index as usize)?.binding.as_ref()?;
        Some(is_builtin_uniform(self.program.scope, Some(binding)))
    }

    fn is_memory_uniform(&self, pointer: Handle<Expression>) -> bool {
        match self.function.expressions[self.root(pointer)] {
            Expression::LocalVariable(local) => !self.divergent_locals.contains(&local),
            Expression::GlobalVariable(global) => match self.program.module.global_variables[global].space {
                AddressSpace::Immediate | AddressSpace::Uniform => true,
                AddressSpace::Storage { access } => !access.contains(StorageAccess::STORE),
                _ => false,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
