import ArgumentParser
import FoundationEssentials
import IntFlashAttention
import TensorFiles

/// `intfa run`: attention over the tensors of a file.
struct Run: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compute attention over tensors of a file and write the result.",
    discussion: """
      IN.safetensors holds q, k and v, [heads, tokens, D] or [batch, heads, tokens, D], in F32, \
      F16 or BF16; the head counts decide which query heads share keys and values. Files of 'intfa \
      quantize' are taken too: their codes are turned back into float32 first. Or each tensor \
      comes from a .npy file: --query Q.npy --key K.npy --value V.npy.

      Tensors mask and sink of IN are used as --mask and --sink would. Where the file's metadata has 'scale' or 'causal', these hold unless --softmax-scale, \
      --causal, --no-causal or --window is given; a message says so.

      OUT is a .safetensors file with o, of the rank and layout of q, and with --log-sum-exp also \
      lse, [batch, heads, tokens]; or, where its name ends in .npy, o alone, with lse in \
      OUT.lse.npy. Equal inputs and options give equal files on every machine.
      """
  )

  @Argument(help: ArgumentHelp("A .safetensors file.", valueName: "in.safetensors"))
  var input: String?

  @Option(name: [.customShort("o"), .customLong("output")], help: "The file to write.")
  var output: String

  @Option(help: ArgumentHelp("Queries in place of IN.", valueName: "q.npy")) var query: String?
  @Option(help: ArgumentHelp("Keys in place of IN.", valueName: "k.npy")) var key: String?
  @Option(help: ArgumentHelp("Values in place of IN.", valueName: "v.npy")) var value: String?

  @Option(help: "Order of dimensions in the files: batch, heads, tokens, dimension.")
  var layout: TensorLayout = .batchHeadsTokens

  @Option(help: "Element type of o.")
  var outputType = OperandType.float32

  @Flag(
    help:
      "Put keys and values into a key/value cache and attend to that: the streaming form of PRECISION."
  )
  var cache = false

  @Option(
    help: ArgumentHelp(
      "With --cache: append N tokens at a time, and compute their queries before the next ones.",
      valueName: "n"
    )
  )
  var chunk: Int?

  @Flag(help: "Also write the log-sum-exp of every query row.")
  var logSumExp = false

  @OptionGroup(title: "Recipe and formula") var precision: PrecisionOptions
  @OptionGroup(title: "Recipe and formula") var mask: MaskOptions
  @OptionGroup(title: "Recipe and formula") var math: MathOptions
  @OptionGroup(title: "Recipe and formula") var added: AdditionOptions
  @OptionGroup(title: "Backend") var backend: BackendOptions
  @OptionGroup(title: "Output") var out: OutputOptions
  @OptionGroup(title: "Output") var seed: SeedOptions

  private var writesNpy: Bool { output.hasSuffix(".npy") }

  func validate() throws {
    let arrays = [query, key, value].compactMap(\.self)
    guard input == nil ? arrays.count == 3 : arrays.isEmpty else {
      throw ValidationError(
        "give either IN.safetensors or all of --query, --key and --value"
      )
    }
    if let input, input.hasSuffix(".npy") {
      throw ValidationError("'\(input)' is one array; give --query, --key and --value instead")
    }
    if writesNpy && outputType == .bfloat16 {
      throw ValidationError(
        "--output-type bfloat16 cannot be written as .npy, which has no such type"
      )
    }
    if let chunk {
      guard cache else { throw ValidationError("--chunk is for --cache, which is not given") }
      guard chunk >= 1 else {
        throw ValidationError("--chunk is \(chunk); it must be at least 1")
      }
    }
    try OutputPath.validate(output)
  }

  func run() throws {
    let backend = try backend.make()
    guard let input else {
      guard let query, let key, let value else { return }
      let operands = Operands(
        query: try NpyFile.read(path: query),
        key: try NpyFile.read(path: key),
        value: try NpyFile.read(path: value),
        layout: layout
      )
      let files = "\(query), \(key), \(value)"
      let shape = try blaming(files) { try operands.shape() }
      let additions = try added.additions(queryHeadCount: shape.queryHeadCount)
      return try attend(operands, shape, StoredOptions(), additions, file: files, on: backend)
    }
    let file = try ActivationFile(path: input)
    let stored = try file.storedOptions()
    if let used = stored.used(math, mask) { out.note("\(input): \(used), from its metadata") }
    let names = added.stored(file.file)
    if !names.isEmpty {
      out.note("\(input): \(names.joined(separator: " and ")) among its tensors are used")
    }
    let operands = try file.operands(layout)
    let shape = try blaming(input) { try operands.shape() }
    let additions = try added.additions(queryHeadCount: shape.queryHeadCount, input: file.file)
    try attend(operands, shape, stored, additions, file: input, on: backend)
  }

  private func attend(
    _ operands: borrowing Operands,
    _ shape: AttentionShape,
    _ defaults: StoredOptions,
    _ additions: borrowing Additions,
    file: String,
    on backend: any AttentionBackend
  ) throws {
    let options = defaults.merged(math, mask)
    if let chunk { try CachedRun.validate(chunk: chunk, options.mask) }
    let plan = try AttentionPlan(
      shape,
      precision: precision.precision,
      options: options,
      on: backend
    )
    var timing = Timing()
    var result = try Tensor(outputType.elementType, shape: shape.outputShape)
    var sums = try Tensor(.float32, shape: logSumExp ? shape.logSumExpShape : [0])
    do {
      try timing.measure {
        if cache {
          let run = CachedRun(plan: plan, precision: precision.precision, chunk: chunk)
          let made = try run.run(operands, additions, on: backend)
          result = try Tensor(
            made.output,
            shape: shape.outputShape,
            elementType: outputType.elementType
          )
          if logSumExp { sums = try Tensor(made.logSumExp, shape: shape.logSumExpShape) }
        } else if logSumExp {
          try operands.run(
            plan,
            additions,
            into: result.mutableView,
            logSumExp: sums.mutableView
          )
        } else {
          try operands.run(plan, additions, into: result.mutableView)
        }
      }
    } catch let error as AttentionError {
      throw Failure(error, file: file)
    }
    let isBatched = operands.query.shape.count == 4
    let stored = try inRank(ofQueries: isBatched, result)
    let storedSums = try Tensor(
      sums.copyFloats(),
      shape: logSumExp && !isBatched ? Array(sums.shape.dropFirst()) : sums.shape
    )
    try Interruption.held { try write(stored, storedSums, metadata: metadata(plan)) }
    report(plan, seconds: timing.least)
  }

  /// The output in the rank and layout of the queries.
  private func inRank(ofQueries isBatched: Bool, _ result: borrowing Tensor) throws -> Tensor {
    let isPermuted = layout == .batchTokensHeads
    let view = try result.view.permuted(isPermuted ? [0, 2, 1, 3] : [0, 1, 2, 3])
    return try Tensor(
      view.copyFloats(),
      shape: isBatched ? view.shape : Array(view.shape.dropFirst()),
      elementType: result.elementType
    )
  }

  /// What equal results have in common: nothing of the machine, the time or the threads.
  private func metadata(_ plan: AttentionPlan) -> [String: String] {
    let descriptor = plan.descriptor
    var metadata = [
      "precision": precision.precision.rawValue,
      "scale": "\(descriptor.softmaxScale)",
      "mask": descriptor.options.mask.name,
    ]
    if let softcap = descriptor.options.softcap { metadata["softcap"] = "\(softcap)" }
    if cache { metadata["cache"] = "1" }
    if added.alibi { metadata["alibi"] = "1" }
    if layout != .batchHeadsTokens { metadata["layout"] = layout.rawValue }
    return metadata
  }

  private func write(
    _ result: borrowing Tensor,
    _ sums: borrowing Tensor,
    metadata: [String: String]
  ) throws {
    if writesNpy {
      try NpyFile.write(result.view, to: output)
      if logSumExp { try NpyFile.write(sums.view, to: output.dropLast(4) + ".lse.npy") }
      return
    }
    var writer = SafetensorsWriter(metadata: metadata)
    writer.add("o", result.view)
    if logSumExp { writer.add("lse", sums.view) }
    try writer.write(to: output)
  }

  private func report(_ plan: AttentionPlan, seconds: Double) {
    var report = Report(
      [Column("output", "output")] + PlanReport.columns + [Column("seconds", "seconds", .fixed(4))]
    )
    report.append(
      [.text(output)] + PlanReport.cells(plan, precision.precision) + [.number(seconds)]
    )
    out.print(report, upright: true)
  }
}

/// Where results are written.
enum OutputPath {
  /// Refuses a path before any work is done for it.
  static func validate(_ path: String) throws {
    var isDirectory = false
    let manager = FileManager.default
    if manager.fileExists(atPath: path, isDirectory: &isDirectory), isDirectory {
      throw ValidationError("the output '\(path)' is a directory")
    }
    let parts = path.split(separator: "/", omittingEmptySubsequences: false).dropLast()
    let parent = parts.joined(separator: "/")
    let folder = parts.isEmpty ? "." : parent.isEmpty ? "/" : parent
    guard manager.fileExists(atPath: folder, isDirectory: &isDirectory), isDirectory else {
      throw ValidationError("the output '\(path)' lies in '\(folder)', which is no directory")
    }
  }
}
