import IntFlashAttention
import Synchronization

/// A C string with an owner.
@safe
final class CText: @unchecked Sendable {
  // Sendable: it is never changed.
  private let bytes: UnsafeMutableBufferPointer<CChar>

  init(_ text: String) {
    let characters = text.utf8CString
    unsafe bytes = UnsafeMutableBufferPointer.allocate(capacity: characters.count)
    _ = unsafe bytes.initialize(from: characters)
  }

  /// Valid as long as the owner.
  var characters: UnsafePointer<CChar> {
    unsafe UnsafePointer(bytes.baseAddress.unsafelyUnwrapped)
  }

  deinit { unsafe bytes.deallocate() }

  /// Names of this library; never what a caller passed, as they stay.
  private static let permanent = Mutex<[String: CText]>([:])

  /// The text as a C string that stays until the process ends, the same pointer every time.
  static func permanent(_ text: String) -> UnsafePointer<CChar> {
    let kept = permanent.withLock { permanent in
      if let kept = permanent[text] { return kept }
      let made = CText(text)
      permanent[text] = made
      return made
    }
    return unsafe kept.characters
  }
}

/// An argument that is text, exactly as it is.
func text(_ pointer: UnsafePointer<CChar>?, _ name: String) throws(AttentionError) -> String {
  let characters = unsafe try require(pointer, name)
  guard let text = unsafe String(validatingCString: characters) else {
    throw AttentionError(.invalidArgument, "\(name) is not UTF-8")
  }
  return text
}
