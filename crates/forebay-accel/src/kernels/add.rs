//! `add`: the sum of two vectors, element by element.

use std::borrow::Cow;

use crate::kernel::{
    Access, Arguments, Check, Cpu, Element, Kernel, Launches, Parameter, ScalarParameter,
    Signature, Sources, Tolerance,
};
use crate::task::{Grid, Launch, Scalar, ScalarType, Shape};

const OPENCL: &str = "
__kernel void add(__global const float *a, __global const float *b, __global float *sum,
                  const uint count) {
    const size_t i = get_global_id(0);
    if (i < count) {
        sum[i] = a[i] + b[i];
    }
}
";

pub(super) fn kernel() -> Kernel {
    let parameter = |name, access| Parameter {
        name: Cow::Borrowed(name),
        access,
        element: Element::F32,
    };
    Kernel {
        name: "add".into(),
        signature: Signature {
            buffers: vec![
                parameter("a", Access::Read),
                parameter("b", Access::Read),
                parameter("sum", Access::Write),
            ],
            scalars: vec![ScalarParameter {
                name: "count".into(),
                kind: ScalarType::U32,
            }],
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: Sources {
            opencl: Some(OPENCL.into()),
            ..Sources::default()
        },
        // One addition is rounded the same way everywhere.
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [Scalar::U32(count)] = shape.scalars else {
        return Err("add takes the count of elements".to_owned());
    };
    if shape.elements.iter().all(|held| *held == *count as usize) && *count > 0 {
        Ok(())
    } else {
        Err(format!(
            "add: all buffers are to hold count = {count} elements, and at least one; they hold {:?}",
            shape.elements
        ))
    }
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Some(Scalar::U32(count)) = shape.scalars.first() else {
        return Vec::new();
    };
    vec![Launch {
        entry: "add".into(),
        grid: Grid::line(*count),
        local: None,
        scratch: Vec::new(),
        scalars: shape.scalars.to_vec(),
    }]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [a, b, sum] = arguments.buffers else {
        return Err("add takes three buffers".to_owned());
    };
    let inputs = a.slice::<f32>()?.iter().zip(b.slice::<f32>()?);
    for (sum, (a, b)) in sum.slice_mut::<f32>()?.iter_mut().zip(inputs) {
        *sum = a + b;
    }
    Ok(())
}
