//! Functions compiled once more for the vector units found when they run.

/// Defines functions whose loops use the processor's widest vectors, whatever the crate was compiled for.
///
/// Their bodies go into a type rather than a closure: the compiler leaves a large closure as a function of its own,
/// compiled for the oldest processor, and only a method can be told to be inlined.
macro_rules! vectorised {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident<'a>($($operand:ident: $type:ty),* $(,)?) -> $result:ty $body:block)*) => {$(
        $(#[$attribute])*
        $visibility fn $name<'a>($($operand: $type),*) -> $result {
            struct Work<'a> {
                $($operand: $type),*
            }
            impl<'a> pulp::WithSimd for Work<'a> {
                type Output = $result;

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $result {
                    let Self { $($operand),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Work { $($operand),* })
        }
    )*};
}

pub(super) use vectorised;
