// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif
public import CIntFlashAttention
import IntFlashAttention
import TensorFiles

/// The message of the last failed call, of each thread its own.
enum LastError {
  /// nil where the process has no key left: then there are statuses, but no messages.
  private static let key: pthread_key_t? = {
    var key = pthread_key_t()
    return unsafe pthread_key_create(&key) { unsafe free($0) } == 0 ? key : nil
  }()

  static func set(_ message: String) {
    guard let key else { return }
    let (old, new) = unsafe (pthread_getspecific(key), strdup(message))
    let isKept = unsafe pthread_setspecific(key, new) == 0
    unsafe free(isKept ? old : UnsafeMutableRawPointer(new))
  }

  static var text: UnsafePointer<CChar> {
    guard let key, let text = unsafe pthread_getspecific(key) else {
      return unsafe CText.permanent("")
    }
    return unsafe UnsafePointer(text.assumingMemoryBound(to: CChar.self))
  }
}

/// An error as an entry point tells it.
protocol CallError: Error {
  var status: intfa_status { get }
  /// One sentence for a person.
  var message: String { get }
}

/// Runs the body of an entry point; an error becomes its status and the thread's message.
func status(_ body: () throws(AttentionError) -> Void) -> intfa_status { statusOfAny(body) }

/// The same for a body whose parts fail in different ways, each of them an ``attempt(_:)``.
func statusOfParts(_ body: () throws(PartFailure) -> Void) -> intfa_status { statusOfAny(body) }

private func statusOfAny<Failure: CallError>(_ body: () throws(Failure) -> Void) -> intfa_status {
  do throws(Failure) {
    try body()
    return intfa_status(INTFA_OK)
  } catch {
    LastError.set(error.message)
    return error.status
  }
}

/// Why a part of an entry point failed.
struct PartFailure: CallError {
  let status: intfa_status
  let message: String
}

/// Runs a part of the body of an entry point.
func attempt<Result, Failure: CallError>(
  _ part: () throws(Failure) -> Result
) throws(PartFailure) -> Result {
  do throws(Failure) { return try part() } catch {
    throw PartFailure(status: error.status, message: error.message)
  }
}

extension TensorFileError: CallError {
  var status: intfa_status {
    let number =
      switch code {
      case .cannotOpen, .cannotWrite: INTFA_FILE_FAILURE
      case .truncated, .malformed, .unsupportedType, .unsupportedLayout, .unknownTensor,
        .shapeMismatch, .tooLarge, .invalidName:
        INTFA_MALFORMED_FILE
      }
    return intfa_status(number)
  }
}

extension AttentionError: CallError {
  var status: intfa_status {
    let number =
      switch code {
      case .invalidArgument: INTFA_INVALID_ARGUMENT
      case .shapeMismatch: INTFA_SHAPE_MISMATCH
      case .unsupportedElementType: INTFA_UNSUPPORTED_ELEMENT_TYPE
      case .unsupported: INTFA_UNSUPPORTED
      case .nonFiniteInput: INTFA_NON_FINITE_INPUT
      case .valueOutOfRange: INTFA_VALUE_OUT_OF_RANGE
      case .overlappingOutput: INTFA_OVERLAPPING_OUTPUT
      case .unavailable: INTFA_UNAVAILABLE
      case .outOfMemory: INTFA_OUT_OF_MEMORY
      case .deviceFailure: INTFA_DEVICE_FAILURE
      case .outOfPages: INTFA_OUT_OF_PAGES
      }
    return intfa_status(number)
  }
}

@c @implementation
public func intfa_last_error() -> UnsafePointer<CChar>! { unsafe LastError.text }

@c @implementation
public func intfa_status_name(_ status: intfa_status) -> UnsafePointer<CChar>! {
  let name =
    switch Int(status) {
    case INTFA_OK: "INTFA_OK"
    case INTFA_INVALID_ARGUMENT: "INTFA_INVALID_ARGUMENT"
    case INTFA_SHAPE_MISMATCH: "INTFA_SHAPE_MISMATCH"
    case INTFA_UNSUPPORTED_ELEMENT_TYPE: "INTFA_UNSUPPORTED_ELEMENT_TYPE"
    case INTFA_UNSUPPORTED: "INTFA_UNSUPPORTED"
    case INTFA_NON_FINITE_INPUT: "INTFA_NON_FINITE_INPUT"
    case INTFA_VALUE_OUT_OF_RANGE: "INTFA_VALUE_OUT_OF_RANGE"
    case INTFA_OVERLAPPING_OUTPUT: "INTFA_OVERLAPPING_OUTPUT"
    case INTFA_UNAVAILABLE: "INTFA_UNAVAILABLE"
    case INTFA_OUT_OF_MEMORY: "INTFA_OUT_OF_MEMORY"
    case INTFA_DEVICE_FAILURE: "INTFA_DEVICE_FAILURE"
    case INTFA_OUT_OF_PAGES: "INTFA_OUT_OF_PAGES"
    case INTFA_FILE_FAILURE: "INTFA_FILE_FAILURE"
    case INTFA_MALFORMED_FILE: "INTFA_MALFORMED_FILE"
    default: "unknown status"
    }
  return unsafe CText.permanent(name)
}
