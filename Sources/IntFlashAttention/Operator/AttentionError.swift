/// Why a call was refused.
///
/// Every message names the argument, its value and the rule that it breaks. An error leaves the
/// output untouched.
public struct AttentionError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The kind of an error, for code that reacts to it.
  public enum Code: String, Sendable, Hashable, CaseIterable {
    /// A count, size, stride or option is outside its range by itself.
    case invalidArgument
    /// Two arguments do not fit each other.
    case shapeMismatch
    /// An element type that this argument cannot have.
    case unsupportedElementType
    /// A combination that this backend does not compute.
    case unsupported
    /// A query, key or value is NaN or infinite.
    case nonFiniteInput
    /// A finite input is so large that float32 arithmetic on it would overflow.
    case valueOutOfRange
    /// The output shares memory with an input, with itself or with the log-sum-exp.
    case overlappingOutput
    /// A device or an instruction set that this machine does not have.
    case unavailable
    /// Memory for the call could not be had.
    case outOfMemory
    /// A GPU, its driver or its compiler reported a failure; the message has their words.
    case deviceFailure
    /// A pool of cached tokens has too few free pages.
    case outOfPages
  }

  /// The kind.
  public let code: Code
  /// One sentence for a person.
  public let message: String

  /// An error of this kind with this message.
  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }

  /// The message.
  public var description: String { message }
}
