//! The one table of diagnostic codes. A code never changes its meaning and is never used again for another one.

use serde::{Serialize, Serializer};

/// How bad a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably does not do what its author wants.
    Warning,
}

macro_rules! codes {
    ($($name:ident $code:literal $title:literal;)*) => {
        /// A stable diagnostic code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $name,)*
        }

        /// Every code, in the order of the numbers.
        pub const CODES: &[Code] = &[$(Code::$name,)*];

        impl Code {
            /// `E0101`, `W0001`, …
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// What the code stands for, in one line.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }
        }
    };
}

codes! {
    NotUtf8 "E0001" "the file is not UTF-8";
    TooLarge "E0002" "the file is too large";
    TooManyErrors "E0003" "there are more errors than are shown";
    Unexpected "E0101" "something else was expected here";
    UnknownStatement "E0102" "no statement begins with this word";
    UnclosedString "E0103" "a string has no closing quote";
    BadEscape "E0104" "a string has an escape that does not exist";
    Unclosed "E0105" "a bracket or brace is not closed";
    TooDeep "E0106" "values are nested too deeply";
    BadNumber "E0107" "a number is malformed";
    BadPlaceholder "E0108" "a placeholder is malformed";
    NulCharacter "E0109" "a NUL character stands in a string";
    BadName "E0201" "a name is malformed or reserved";
    DuplicateName "E0202" "a name is declared twice";
    DuplicateProperty "E0203" "a property is set twice";
    UnknownProperty "E0204" "no property has this name";
    UnknownComponent "E0205" "no component has this name";
    UnknownReference "E0206" "a placeholder names nothing that exists";
    NameCollision "E0207" "two names become the same host or variable name";
    Circle "E0208" "components wait for each other in a circle";
    DuplicateConnect "E0209" "two components are connected twice";
    UnsetVariable "E0210" "an environment variable is not set";
    Exclusive "E0211" "properties exclude each other";
    NothingDeclared "E0212" "the file declares no component to deploy";
    UnknownBase "E0213" "there is nothing of this name to inherit from";
    InheritanceCircle "E0214" "components inherit from each other in a circle";
    BadArguments "E0215" "arguments do not fit the parameters of what is inherited from";
    NothingInherited "E0216" "nothing is inherited that could be changed";
    TemplateNamed "E0217" "a template is named where a component is needed";
    TooManyLevels "E0218" "inheritance or imports go too deep";
    UnknownParameter "E0219" "a value is given for a parameter that does not exist";
    MissingParameter "E0220" "a parameter has no value";
    BadImport "E0221" "a file cannot be imported";
    WrongPin "E0222" "an imported file is not the one that is pinned";
    ImportCircle "E0223" "files import each other in a circle";
    UnknownProfile "E0224" "no component has this profile";
    UnreadableFile "E0225" "a file that a composition is made from cannot be read";
    BadEnvFile "E0226" "a file of variables is malformed";
    UnknownConfig "E0227" "no CONFIG has this name";
    UnknownNetwork "E0228" "no NETWORK has this name";
    WrongType "E0301" "a value has the wrong type";
    UnknownChoice "E0302" "a value is not one of the allowed ones";
    BadUnit "E0303" "a unit is missing or unknown";
    OutOfRange "E0304" "a number is out of range";
    BadPath "E0305" "a path is not of the form that is needed";
    MissingProperty "E0306" "a required property is missing";
    BadImage "E0307" "an image reference is malformed";
    BadDigest "E0308" "a digest is malformed";
    BadMount "E0309" "a volume, tmpfs, secret or config entry is malformed";
    DuplicateValue "E0310" "a value is listed twice";
    BadWords "E0311" "a command line cannot be split into words";
    BadHostname "E0312" "a host name is malformed";
    BadUser "E0313" "a user or group is malformed";
    NothingToRun "E0314" "a component has no program to run";
    BadVariableName "E0315" "an environment variable's name is malformed";
    TooLong "E0316" "a text is too long";
    BadSysctl "E0317" "a kernel setting is not one of a container's own";
    BadAddress "E0318" "an address is malformed";
    SecretElsewhere "E0319" "a secret stands where it would be seen";
    BadSubnet "E0320" "a subnet is malformed, reserved, or overlaps another";
    BadNetworkAddress "E0321" "an address on a network cannot be given";
    NoHealthcheck "E0401" "a wait for health has no health check to wait for";
    PortConflict "E0402" "a port of the host is used twice";
    RangeMismatch "E0403" "port ranges do not fit each other";
    NoSuchPort "E0404" "no component declares this port";
    AmbiguousPort "E0405" "several components declare this port";
    PublicAddress "E0406" "PUBLIC and an address exclude each other";
    NoNetwork "E0407" "a port is published of a component without a network";
    TooManyPorts "E0408" "too many ports are published";
    Inactive "E0409" "a component is needed that is not deployed";
    NotAJob "E0410" "a wait for completion of what is no JOB";
    NoCommonNetwork "E0411" "a connection between components that are on no network together";
    NoWayOut "E0412" "name servers are given to a component that cannot ask them";
    NotSupported "E0900" "not supported yet";
    Unconnected "W0001" "a component is referred to but not connected";
    NoShell "W0002" "a shell operator stands in a command that no shell runs";
    Unreachable "W0003" "a connection leads to or from a component without a network";
    ImpliedTemplate "W0004" "a component is taken for a template";
    UnusedParameter "W0005" "a parameter is used nowhere";
    UnusedImport "W0006" "nothing inherits from an imported file";
    NoEffect "W0007" "a statement has no effect in an imported file";
    SmallWeight "W0008" "a processor weight is so small that it looks like a number of processors";
    UnusedDeclaration "W0009" "what is declared is used nowhere";
    UndeclaredVolume "W0010" "a volume is not declared, but one with a name like it is";
}

impl Code {
    /// Error or warning, as the first letter says.
    #[must_use]
    pub fn severity(self) -> Severity {
        if self.as_str().starts_with('W') { Severity::Warning } else { Severity::Error }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::CODES;

    #[test]
    fn codes_are_unique_and_in_order() {
        let (warnings, errors): (Vec<&str>, Vec<&str>) =
            CODES.iter().map(|code| code.as_str()).partition(|code| code.starts_with('W'));
        for family in [errors, warnings] {
            assert!(family.is_sorted_by(|a, b| a < b), "{family:?}");
        }
        assert!(CODES.iter().all(|code| code.as_str().len() == 5 && !code.title().is_empty()));
    }
}
