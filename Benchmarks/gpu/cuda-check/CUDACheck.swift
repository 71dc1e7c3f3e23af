import ArgumentParser
import IntFlashAttention
import IntFlashAttentionCUDA

/// What is to be measured on a machine with a GPU; `Benchmarks/gpu/README.md` says how.
@main
struct CUDACheck: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cuda-check",
    abstract: "Check and time the CUDA backend on the GPU of this machine.",
    subcommands: [Correctness.self, Speed.self]
  )
}

/// A sentence on standard error, and exit code 1 or 69.
struct Stop: Error, CustomStringConvertible {
  let description: String
}

extension CUDADevice {
  /// The GPU of the measurements, and what computes on it.
  static func first() throws -> (device: CUDADevice, driver: CUDAVersion, compiler: CUDAVersion) {
    let devices = try CUDADevice.all()
    guard let device = devices.first else { throw Stop(description: "there is no GPU") }
    return (device, try CUDADriver.shared.get().version, try NVRTC.shared.get().version)
  }
}

/// JSON of numbers, names and lists of them, as the measurements have it.
enum JSON {
  static func text(_ value: String) -> String {
    "\""
      + value.map { $0 == "\"" || $0 == "\\" ? "\\\($0)" : $0.isASCII ? String($0) : "?" }.joined()
      + "\""
  }

  static func object(_ fields: KeyValuePairs<String, String>) -> String {
    "{" + fields.map { "\(text($0.key)): \($0.value)" }.joined(separator: ", ") + "}"
  }

  static func list(_ items: [String]) -> String { "[\n" + items.joined(separator: ",\n") + "\n]" }
}
