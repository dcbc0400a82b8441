//! Each tensor has one owner, of a role that fits.

use super::ensure;
use crate::plan::{Plan, Role, TensorId};

/// Whose a tensor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Owner {
    /// What steps pass to each other.
    #[default]
    Steps,
    Input,
    /// A parameter, by its position.
    Parameter(u32),
    /// Optimizer state of a parameter.
    State(u32),
    /// The gradient of one or several parameters.
    Gradient,
    Decay,
    Constant,
    Control,
    Scratch,
}

/// The owner of each tensor. Expects the indices of ports and parameters to be in range.
pub(super) fn find(plan: &Plan) -> Result<Vec<Owner>, String> {
    let mut owners = Owners { plan, found: vec![Owner::Steps; plan.tensors.len()] };
    for (owned, p) in (0u32..).zip(&plan.parameters) {
        owners.claim(p.tensor, Owner::Parameter(owned), &[Role::Parameter])?;
        for &s in &p.state {
            owners.claim(s, Owner::State(owned), &[Role::State])?;
        }
        if let Some(d) = p.decay {
            owners.claim(d, Owner::Decay, &[Role::Parameter, Role::Constant])?;
        }
    }
    for p in &plan.inputs {
        owners.claim(p.tensor, Owner::Input, &[Role::Input])?;
    }
    if let Some(c) = plan.control {
        owners.claim(c, Owner::Control, &[Role::Control])?;
    }
    // A gradient may serve several parameters, and be an output.
    for g in plan.parameters.iter().filter_map(|p| p.gradient) {
        if owners.found[g.0 as usize] != Owner::Gradient {
            owners.claim(g, Owner::Gradient, &[Role::Gradient, Role::State, Role::Output])?;
        }
    }
    for id in plan.outputs.iter().map(|p| p.tensor).chain(plan.loss) {
        let t = plan.tensor(id);
        ensure(t.role == Role::Output || t.bytes == 0, || format!("tensor {} is read as an output and has another role", t.name))?;
    }
    owners.rest()?;
    Ok(owners.found)
}

struct Owners<'a> {
    plan: &'a Plan,
    found: Vec<Owner>,
}

impl Owners<'_> {
    fn claim(&mut self, id: TensorId, owner: Owner, roles: &[Role]) -> Result<(), String> {
        let t = self.plan.tensor(id);
        ensure(self.found[id.0 as usize] == Owner::Steps, || format!("tensor {} has two owners", t.name))?;
        ensure(roles.contains(&t.role), || format!("tensor {} is used as what its role excludes", t.name))?;
        self.found[id.0 as usize] = owner;
        Ok(())
    }

    /// Gives constants and scratch memory their owners; what only a parameter or the trainer can own must have been claimed.
    fn rest(&mut self) -> Result<(), String> {
        for (t, owner) in self.plan.tensors.iter().zip(&mut self.found).filter(|(_, o)| **o == Owner::Steps) {
            *owner = match t.role {
                Role::Constant => Owner::Constant,
                Role::Scratch => Owner::Scratch,
                Role::Activation | Role::Output => Owner::Steps,
                // A gradient that no parameter has is an activation by another name.
                Role::Gradient => Owner::Steps,
                Role::Input | Role::Parameter | Role::State | Role::Control => {
                    return Err(format!("tensor {} belongs to nothing that gives it a value", t.name));
                }
            };
        }
        Ok(())
    }
}
