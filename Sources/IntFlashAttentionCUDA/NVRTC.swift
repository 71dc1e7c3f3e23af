internal import CAttentionKernels
package import IntFlashAttention

/// The run-time compiler of CUDA, found at run time.
@safe
package final class NVRTC: @unchecked Sendable {
  // Sendable: the table is filled once, and programs of different threads do not meet.
  private let functions: intfa_nvrtc
  /// The version, which decides what a compilation gives.
  package let version: CUDAVersion
  /// What it can compile for: compute capabilities times ten.
  package let architectures: [Int]

  /// The compiler, or why there is none.
  package static let shared: Result<NVRTC, AttentionError> = {
    do throws(AttentionError) { return .success(try NVRTC()) } catch { return .failure(error) }
  }()

  private init() throws(AttentionError) {
    var functions = intfa_nvrtc()
    let missing = unsafe loaderMessage { text, capacity in
      unsafe intfa_load_nvrtc(&functions, text, capacity)
    }
    if let missing {
      throw AttentionError(
        .unavailable,
        "no CUDA run-time compiler: \(missing); it is in the CUDA toolkit and in the Python package "
          + "nvidia-cuda-nvrtc-cu12, whose folder LD_LIBRARY_PATH must name"
      )
    }
    self.functions = functions
    var (major, minor): (Int32, Int32) = (0, 0)
    _ = unsafe functions.nvrtcVersion(&major, &minor)
    version = CUDAVersion(major: Int(major), minor: Int(minor))
    var count: Int32 = 0
    _ = unsafe functions.nvrtcGetNumSupportedArchs(&count)
    var numbers = [Int32](repeating: 0, count: Int(max(count, 0)))
    if !numbers.isEmpty { _ = unsafe functions.nvrtcGetSupportedArchs(&numbers) }
    architectures = numbers.map { Int($0) }
  }

  /// What every compilation is given besides the architecture.
  package static let options = ["--std=c++17"]

  /// What to compile for a device: code for it; if it is newer than the compiler, code for an older one
  /// of its generation, which it runs, or else `compute_…`, which its driver compiles on.
  ///
  /// - Throws: `AttentionError` with code `.unavailable` where the compiler knows nothing that the device
  ///   runs.
  package func architecture(for device: CUDADevice) throws(AttentionError) -> String {
    guard
      let name = Self.architecture(
        major: device.major,
        minor: device.minor,
        exact: device.architecture,
        known: architectures
      )
    else {
      throw AttentionError(
        .unavailable,
        "NVRTC \(version) cannot compile for \(device.architecture)"
      )
    }
    return name
  }

  package static func architecture(
    major: Int,
    minor: Int,
    exact: String,
    known: [Int]
  ) -> String? {
    let number = 10 * major + minor
    if known.contains(number) { return exact }
    guard let nearest = known.filter({ $0 >= 80 && $0 < number }).max() else { return nil }
    return nearest / 10 == major ? "sm_\(nearest)" : "compute_\(nearest)"
  }

  /// What a compilation gave.
  package struct Output: Sendable {
    /// Code for the device, or text for its driver.
    package let code: [UInt8]
    /// What the compiler said.
    package let log: String
  }

  /// Compiles a source for one architecture.
  ///
  /// - Parameters:
  ///   - source: the text.
  ///   - files: what it can include.
  ///   - architecture: for instance `sm_80`.
  ///   - extra: options beside ``options``.
  /// - Returns: the code and what the compiler said.
  /// - Throws: `AttentionError` with code `.deviceFailure` and the compiler's log.
  package func compile(
    _ source: String,
    files: [(name: String, text: String)],
    architecture: String,
    options extra: [String] = []
  ) throws(AttentionError) -> Output {
    var program: nvrtcProgram?
    let created = unsafe withCStrings(files.map(\.text)) { texts in
      unsafe withCStrings(files.map(\.name)) { names in
        unsafe functions.nvrtcCreateProgram(
          &program,
          source,
          "attention.cu",
          Int32(files.count),
          texts,
          names
        )
      }
    }
    try check("nvrtcCreateProgram", created)
    defer { _ = unsafe functions.nvrtcDestroyProgram(&program) }
    let options = ["--gpu-architecture=\(architecture)"] + Self.options + extra
    let compiled = unsafe withCStrings(options) {
      unsafe functions.nvrtcCompileProgram(program, Int32(options.count), $0)
    }
    guard compiled == 0 else {
      throw AttentionError(
        .deviceFailure,
        "NVRTC \(version) cannot compile the kernels for \(architecture):\n\(unsafe log(program))"
      )
    }
    let isText = architecture.hasPrefix("compute_")
    let table = functions
    var size = 0
    let sized =
      isText
      ? unsafe table.nvrtcGetPTXSize(program, &size)
      : unsafe table.nvrtcGetCUBINSize(program, &size)
    try check(isText ? "nvrtcGetPTXSize" : "nvrtcGetCUBINSize", sized)
    var code = [UInt8](repeating: 0, count: size)
    let copied = unsafe code.withUnsafeMutableBytes {
      let target = unsafe $0.baseAddress?.assumingMemoryBound(to: CChar.self)
      return isText
        ? unsafe table.nvrtcGetPTX(program, target)
        : unsafe table.nvrtcGetCUBIN(program, target)
    }
    try check(isText ? "nvrtcGetPTX" : "nvrtcGetCUBIN", copied)
    return Output(code: code, log: unsafe log(program))
  }

  private func log(_ program: nvrtcProgram?) -> String {
    var size = 0
    _ = unsafe functions.nvrtcGetProgramLogSize(program, &size)
    var text = [CChar](repeating: 0, count: size + 1)
    _ = unsafe functions.nvrtcGetProgramLog(program, &text)
    return String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  private func check(_ operation: String, _ result: nvrtcResult) throws(AttentionError) {
    guard result != 0 else { return }
    let text = unsafe functions.nvrtcGetErrorString(result).map { unsafe String(cString: $0) }
    throw AttentionError(.deviceFailure, "\(operation): \(text ?? "error \(result)")")
  }
}

/// Calls `body` with C strings that live as long as the call.
private func withCStrings<Result>(
  _ strings: [String],
  _ body: (UnsafePointer<UnsafePointer<CChar>?>?) -> Result
) -> Result {
  let joined = strings.map { Array($0.utf8CString) }
  let starts = joined.reduce(into: [0]) { $0.append($0[$0.count - 1] + $1.count) }
  return unsafe Array(joined.joined()).withUnsafeBufferPointer { bytes in
    let base = bytes.baseAddress
    let pointers = unsafe strings.indices.map { index in
      unsafe base.map { unsafe $0 + starts[index] }
    }
    return unsafe pointers.withUnsafeBufferPointer { unsafe body($0.baseAddress) }
  }
}
