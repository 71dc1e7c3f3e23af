import ArgumentParser
import IntFlashAttention
import IntFlashAttentionCUDA

/// `intfa info`: what a bug report quotes.
struct Info: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Print version, processor, instruction sets, threads, GPU and cache directory.",
    discussion: """
      JSON keys: version processor architecture processors cores processorLimit threads \
      instructionSets isa INTFA_ISA cacheDirectory gpus cudaDriver cudaCompiler. Processors are those \
      that the process may run on, cores the physical ones among them, processorLimit is what its \
      control groups grant, threads what a call uses unless told otherwise.
      """
  )

  @OptionGroup(title: "Output") var output: OutputOptions

  func run() throws {
    let processors = CPUProcessors.found
    var report = Report([
      Column("version", "intfa"),
      Column("processor", "processor"),
      Column("architecture", "architecture"),
      Column("processors", "processors"),
      Column("cores", "cores"),
      Column("processorLimit", "processor limit", .fixed(2)),
      Column("threads", "threads"),
      Column("instructionSets", "instruction sets"),
      Column("isa", "chosen"),
      Column("INTFA_ISA", "INTFA_ISA"),
      Column("cacheDirectory", "cache directory"),
      Column("gpus", "GPUs"),
      Column("cudaDriver", "CUDA driver"),
      Column("cudaCompiler", "CUDA compiler"),
    ])
    report.append([
      .text(Intfa.version),
      .text(Machine.processorName),
      .text(Machine.architecture),
      .integer(processors.allowedCount),
      .integer(processors.coreCount),
      .optional(processors.timeLimit),
      .integer(processors.threadCount),
      .list(InstructionSet.supported.map(\.rawValue)),
      chosen,
      Machine.environment("INTFA_ISA").map(Cell.text) ?? .none,
      .text(CUDABackend.cacheDirectory),
      gpus,
      .text(Self.describe(CUDADriver.shared) { "CUDA \($0.version)" }),
      .text(Self.describe(NVRTC.shared) { "NVRTC \($0.version)" }),
    ])
    output.print(report, upright: true)
  }

  /// The GPUs of the driver, which says itself why there are none.
  private var gpus: Cell {
    let devices = (try? CUDADevice.all()) ?? []
    guard !devices.isEmpty else { return .none }
    return .list(
      devices.map {
        "\($0.name), \($0.architecture), \($0.multiprocessorCount) multiprocessors, "
          + "\($0.memoryByteCount >> 30) GiB"
      }
    )
  }

  /// What was found, or why it was not.
  private static func describe<Found>(
    _ result: Result<Found, AttentionError>,
    _ text: (Found) -> String
  ) -> String {
    switch result {
    case .success(let found): text(found)
    case .failure(let error): error.message
    }
  }

  /// The instruction set that calls use, or why there is none.
  private var chosen: Cell {
    do throws(AttentionError) {
      return .text(try CPUBackend().chosenInstructionSet().rawValue)
    } catch {
      Console.message("Error: \(error.message)")
      return .none
    }
  }
}
