internal import CAttentionKernels
package import IntFlashAttention

/// The CUDA driver of this machine, found at run time.
@safe
package final class CUDADriver: @unchecked Sendable {
  // Sendable: the table is filled once, and the driver's functions may be called from any thread.
  let functions: intfa_cuda_driver
  /// The newest CUDA that the driver supports.
  package let version: CUDAVersion

  /// The driver, or why there is none.
  package static let shared: Result<CUDADriver, AttentionError> = {
    do throws(AttentionError) { return .success(try CUDADriver()) } catch { return .failure(error) }
  }()

  private init() throws(AttentionError) {
    var functions = intfa_cuda_driver()
    let missing = unsafe loaderMessage { text, capacity in
      unsafe intfa_load_cuda_driver(&functions, text, capacity)
    }
    if let missing { throw AttentionError(.unavailable, "no CUDA driver: \(missing)") }
    self.functions = functions
    var number: Int32 = 0
    _ = unsafe functions.cuDriverGetVersion(&number)
    version = CUDAVersion(major: Int(number) / 1000, minor: Int(number) % 1000 / 10)
    let result = functions.cuInit(0)
    guard result == 0 else {
      throw AttentionError(
        .unavailable,
        "the CUDA driver found no usable GPU: \(Self.text(result, functions))"
      )
    }
  }

  private static func text(_ result: CUresult, _ functions: intfa_cuda_driver) -> String {
    var text: UnsafePointer<CChar>?
    _ = unsafe functions.cuGetErrorString(result, &text)
    guard let text = unsafe text else { return "error \(result)" }
    return "\(unsafe String(cString: text)) (\(result))"
  }

  /// Throws for every result but success, in the driver's words.
  func check(_ operation: String, _ result: CUresult) throws(AttentionError) {
    guard result != 0 else { return }
    let code: AttentionError.Code = result == 2 ? .outOfMemory : .deviceFailure
    throw AttentionError(code, "\(operation): \(Self.text(result, functions))")
  }
}

/// A version of CUDA.
package struct CUDAVersion: Hashable, Sendable, CustomStringConvertible {
  package let major: Int
  package let minor: Int

  package var description: String { "\(major).\(minor)" }
}

/// Calls a loader; nil where it succeeded, else what it says is missing.
func loaderMessage(
  _ load: (UnsafeMutablePointer<CChar>?, Int) -> Int32
) -> String? {
  var text = [CChar](repeating: 0, count: 512)
  let capacity = text.count
  let result = unsafe text.withUnsafeMutableBufferPointer {
    unsafe load($0.baseAddress, capacity)
  }
  guard result != 0 else { return nil }
  return String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
}
