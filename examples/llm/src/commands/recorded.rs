//! Options as a row of results holds them.

use anyhow::{Result, bail};
use kvsculpt::Options;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Options exactly as they were written. Read as [`Options`], a row of an older version would be given today's defaults where it says
/// nothing, and pass for a measurement that it is not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recorded(Map<String, Value>);

impl Recorded {
    /// These options, all of them.
    ///
    /// # Errors
    /// Options that are no JSON object.
    pub fn of(options: &Options) -> Result<Self> {
        match serde_json::to_value(options)? {
            Value::Object(fields) => Ok(Self(fields)),
            other => bail!("options are no object: {other}"),
        }
    }

    /// Whether these are the same options: none more, none fewer, and each of the same value.
    #[must_use]
    pub fn are(&self, options: &Options) -> bool {
        Self::of(options).is_ok_and(|options| options == *self)
    }

    /// Every option, by name.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter()
    }

    /// The value of an option; none if it was not recorded.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_an_older_or_a_newer_version_are_others() {
        for options in [Options::default(), Options::published()] {
            let written = serde_json::to_string(&Recorded::of(&options).unwrap()).unwrap();
            let read = |text: &str| serde_json::from_str::<Recorded>(text).unwrap();
            assert!(read(&written).are(&options));
            assert_eq!(serde_json::from_str::<Options>(&written).unwrap(), options);
            let fields: Map<String, Value> = serde_json::from_str(&written).unwrap();
            assert!(fields.len() > 20);
            for name in fields.keys() {
                let mut older = fields.clone();
                older.remove(name);
                assert!(!Recorded(older).are(&options), "without {name}");
            }
            let mut newer = fields.clone();
            newer.insert("another".into(), 1.into());
            assert!(!Recorded(newer).are(&options));
            let mut other = fields;
            other.insert("page".into(), 2.into());
            assert!(!Recorded(other).are(&options));
        }
    }
}
