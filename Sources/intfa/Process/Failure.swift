import ArgumentParser
import IntFlashAttention
import TensorFiles

/// How the process ends, besides 0.
enum ExitStatus: Int32 {
  /// A stated bound is broken.
  case brokenBound = 1
  /// Arguments that cannot be.
  case usage = 64
  /// Input data that cannot be, or does not fit.
  case badData = 65
  /// A backend, device or instruction set that is not available here.
  case unavailable = 69
  /// Anything that is not the caller's doing.
  case internalError = 70
  /// Ended by the interrupt signal.
  case interrupted = 130
}

/// Why a verb stops, and with which status.
struct Failure: Error {
  /// The status of the process.
  let status: ExitStatus
  /// One sentence for a person: the argument, its value and the rule.
  let message: String

  init(_ status: ExitStatus, _ message: String) {
    self.status = status
    self.message = message
  }

  /// What an error of the library means when the sizes and options came from the command line.
  init(_ error: AttentionError) {
    let status: ExitStatus =
      switch error.code {
      case .invalidArgument: .usage
      case .shapeMismatch, .unsupportedElementType, .nonFiniteInput, .valueOutOfRange: .badData
      case .unsupported, .unavailable: .unavailable
      case .overlappingOutput, .outOfMemory, .outOfPages, .deviceFailure: .internalError
      }
    self.init(status, error.message)
  }

  /// What an error of the library means when the sizes came from this file.
  init(_ error: AttentionError, file: String) {
    let failure = Failure(error)
    self.init(failure.status == .usage ? .badData : failure.status, "\(file): \(error.message)")
  }

  init(_ error: TensorFileError) {
    let status: ExitStatus =
      switch error.code {
      case .cannotWrite: .internalError
      case .cannotOpen, .truncated, .malformed, .unsupportedType, .unsupportedLayout,
        .unknownTensor, .shapeMismatch, .tooLarge, .invalidName:
        .badData
      }
    self.init(status, error.message)
  }

  /// nil for what the argument parser reports itself: help, exit codes, validation errors.
  init?(_ error: any Error) {
    switch error {
    case let error as Failure: self = error
    case let error as AttentionError: self.init(error)
    case let error as TensorFileError: self.init(error)
    case is ExitCode: return nil
    default:
      // Status 1 is what the parser gives to errors that it does not know.
      guard Intfa.exitCode(for: error) == .failure else { return nil }
      self.init(.internalError, "\(error)")
    }
  }
}

/// Runs `body`; an error of the library in it is the fault of this file.
func blaming<Result: ~Copyable>(_ file: String, _ body: () throws -> Result) throws -> Result {
  do {
    return try body()
  } catch let error as AttentionError {
    throw Failure(error, file: file)
  }
}
