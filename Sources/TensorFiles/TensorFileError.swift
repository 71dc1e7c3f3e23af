/// Why a tensor file was not read or written.
///
/// Every message names the file, the value and the rule that it breaks. Names that come from a file
/// are quoted, escaped and shortened, so that they are safe to print.
public struct TensorFileError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The kind of an error, for code that reacts to it.
  public enum Code: String, Sendable, Hashable, CaseIterable {
    /// The file does not exist or cannot be read.
    case cannotOpen
    /// The file ends before what its header promises.
    case truncated
    /// The file breaks a rule of its format.
    case malformed
    /// A number format that cannot be read or written here.
    case unsupportedType
    /// An order of elements other than row-major.
    case unsupportedLayout
    /// There is no tensor of this name.
    case unknownTensor
    /// The shape asked for is not the shape stored.
    case shapeMismatch
    /// A size above a limit of the format, of this library, of `Int` or of memory.
    case tooLarge
    /// A tensor name that cannot be written: reserved, or used twice.
    case invalidName
    /// The file cannot be written; what was there before is untouched.
    case cannotWrite
  }

  /// The kind.
  public let code: Code
  /// The file, as the caller named it.
  public let path: String
  /// One sentence for a person, beginning with the path.
  public let message: String

  /// An error of this kind about this file; the message is the path, a colon and `rule`.
  public init(_ code: Code, path: String, _ rule: String) {
    self.code = code
    self.path = path
    self.message = "\(path): \(rule)"
  }

  /// The message.
  public var description: String { message }
}

extension String {
  /// This text in quotes, without control characters and not too long to print.
  var quoted: String {
    let limit = 80
    let part = unicodeScalars.prefix(limit)
    let isWhole = part.endIndex == unicodeScalars.endIndex
    return String(part).debugDescription + (isWhole ? "" : "…")
  }
}
