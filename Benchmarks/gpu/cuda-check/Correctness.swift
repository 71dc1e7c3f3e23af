import ArgumentParser
import IntFlashAttention
import IntFlashAttentionCUDA

/// Every kernel against the same recipe in double precision, against exact attention, and beside the CPU.
struct Correctness: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Compare every kernel with the definition and with the CPU backend.",
    discussion: """
      A row is right if the GPU's result is that of its own recipe in double precision up to \
      rounding, and its error against exact attention is within the precision's gate or no larger \
      than that of the CPU. Exit code 1 if one is not.
      """
  )

  @Argument(help: "Activations: .safetensors files with q, k and v.")
  var files: [String]

  @Option(help: "Tokens to take.")
  var tokens = 512

  @Option(help: "Where the rows go as JSON.")
  var output: String?

  private struct Row {
    let input: String
    let precision: Precision
    let dimension: Int
    let call: String
    let sameRecipe: Double
    let logSumExp: Float
    let gpu: Double
    let cpu: Double
    let isRight: Bool
  }

  func run() throws {
    let (device, driver, compiler) = try CUDADevice.first()
    print(
      "\(device.name), compute capability \(device.major).\(device.minor), "
        + "\(device.multiprocessorCount) multiprocessors, driver for CUDA \(driver), NVRTC \(compiler)"
    )
    var rows: [Row] = []
    for operands in try Activations(paths: files, tokens: tokens).operands() {
      let few = try operands.last(3)
      for precision in [Precision.int8, .int8Paper, .bfloat16, .float16] {
        for (name, mask) in [
          ("causal", AttentionMask.causal), ("full", .full),
          ("sliding", .sliding(left: tokens / 4, right: 0)),
        ] {
          rows.append(try row(operands, precision, name, mask, on: device))
        }
        rows.append(try row(few, precision, "3 queries", .causal, on: device))
      }
      rows += try cacheRows(operands, on: device)
    }
    show(rows)
    if let output { try write(rows, to: output) }
    let wrong = rows.filter { !$0.isRight }.count
    print("\(rows.count) calls, \(wrong) wrong")
    if wrong > 0 { throw ExitCode(1) }
  }

  private func row(
    _ operands: Operands,
    _ precision: Precision,
    _ call: String,
    _ mask: AttentionMask,
    on device: CUDADevice
  ) throws -> Row {
    let options = AttentionOptions(mask: mask)
    guard let method = CUDAMethod(precision.recipe) else {
      throw Stop(description: "\(precision.rawValue) has no kernel")
    }
    let sizes = CUDATileSizes(
      shape: operands.shape,
      method: method,
      major: device.major,
      multiprocessorCount: device.multiprocessorCount
    )
    let gpu = try operands.attend(precision.recipe, options, on: CUDABackend(on: device))
    return try row(
      operands,
      precision,
      call,
      options,
      gpu: gpu,
      definition: precision.recipe.cut(by: sizes)
    )
  }

  /// Compares a result of the GPU; `definition` is the recipe that it should have computed.
  private func row(
    _ operands: Operands,
    _ precision: Precision,
    _ call: String,
    _ options: AttentionOptions,
    gpu: (output: [Float], logSumExp: [Float]),
    definition: QuantizationRecipe
  ) throws -> Row {
    let same = try operands.attend(definition, options, on: ReferenceBackend())
    let exact = try operands.attend(Precision.float32.recipe, options, on: ReferenceBackend())
    let cpu = try operands.attend(precision.recipe, options, on: CPUBackend())
    let apart = AccuracyReport(gpu.output, against: same.output).relativeL1
    let error = AccuracyReport(gpu.output, against: exact.output).relativeL1
    let onCPU = AccuracyReport(cpu.output, against: exact.output).relativeL1
    let sums = zip(gpu.logSumExp, same.logSumExp)
      .map { $0 == $1 ? 0 : ($0 - $1).magnitude }
    let sumsApart = sums.reduce(0) { $1 <= $0 ? $0 : $1 }
    let gate = precision.gate
    return Row(
      input: operands.name,
      precision: precision,
      dimension: operands.shape.headDimension,
      call: call,
      sameRecipe: apart,
      logSumExp: sumsApart,
      gpu: error,
      cpu: onCPU,
      isRight: apart <= gate.rounding && sumsApart <= Self.logSumExpBound(precision)
        && error <= max(gate.worst, onCPU + gate.rounding)
    )
  }

  /// A P of one code more or less, of the 127 or 255 that a row has at least; else float32's rounding.
  private static func logSumExpBound(_ precision: Precision) -> Float {
    switch precision.recipe.probability {
    case .unsigned8, .signed8: 0.01
    default: 1e-3
    }
  }

  /// A cache on the device with the keys and values in two parts, and its last queries; as near to exact
  /// attention as the gate of the precision wants it, since its statistics are those of no one call.
  private func cacheRows(_ operands: Operands, on device: CUDADevice) throws -> [Row] {
    let shape = operands.shape
    let stream = try CUDAStream(on: device)
    let cache = try CUDAKVCache(
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      capacity: shape.keyValueLength,
      on: device
    )
    func upload(_ values: [Float], _ shape: [Int]) throws -> DeviceTensor {
      let host = try Tensor(values, shape: shape)
      let tensor = try DeviceTensor(.float32, shape: shape, on: device)
      try tensor.copy(from: host, on: stream)
      return tensor
    }
    let key = try upload(operands.key, shape.keyShape)
    let value = try upload(operands.value, shape.valueShape)
    try cache.append(key: key, value: value, on: stream)
    return try [1, 5].map { count in
      let last = try operands.last(count)
      let query = try upload(last.query, last.shape.queryShape)
      let output = try DeviceTensor(.float32, shape: last.shape.outputShape, on: device)
      try cache.attend(query: query, into: output, on: stream)
      try cache.check(on: stream)
      var result = try Tensor(.float32, shape: last.shape.outputShape)
      try output.copy(to: &result, on: stream)
      let options = AttentionOptions(mask: .causal)
      let exact = try last.attend(Precision.float32.recipe, options, on: ReferenceBackend())
      let error = AccuracyReport(result.copyFloats(), against: exact.output).relativeL1
      let onCPU = try Self.cachedOnCPU(last, options)
      let ofCPU = AccuracyReport(onCPU, against: exact.output).relativeL1
      return Row(
        input: operands.name,
        precision: .int8,
        dimension: shape.headDimension,
        call: "cache, \(count)",
        sameRecipe: AccuracyReport(result.copyFloats(), against: onCPU).relativeL1,
        logSumExp: 0,
        gpu: error,
        cpu: ofCPU,
        isRight: error <= max(Precision.int8.gate.worst, 1.5 * ofCPU)
      )
    }
  }

  private static func cachedOnCPU(
    _ operands: Operands,
    _ options: AttentionOptions
  ) throws -> [Float] {
    let shape = operands.shape
    let cache = try KVCache(
      keyValueHeadCount: shape.keyValueHeadCount,
      headDimension: shape.headDimension,
      capacity: shape.keyValueLength
    )
    let key = try Tensor(operands.key, shape: shape.keyShape)
    let value = try Tensor(operands.value, shape: shape.valueShape)
    let query = try Tensor(operands.query, shape: shape.queryShape)
    try cache.append(key: key.view, value: value.view)
    var output = try Tensor(.float32, shape: shape.outputShape)
    try CachedAttention(
      queryHeadCount: shape.queryHeadCount,
      options: options,
      pool: cache.pool
    )
    .run(query: query.view, cache: cache, into: output.mutableView)
    return output.copyFloats()
  }

  // MARK: Output

  private func show(_ rows: [Row]) {
    print("| input | precision | D | call | to its recipe | error | error on the CPU | |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows {
      let numbers = [row.sameRecipe, row.gpu, row.cpu].map(Self.percent).joined(separator: " | ")
      print(
        "| \(row.input) | \(row.precision.rawValue) | \(row.dimension) | \(row.call) | \(numbers) | "
          + "\(row.isRight ? "" : "WRONG") |"
      )
    }
  }

  private static func percent(_ error: Double) -> String {
    let digits = Int((error * 1_000_000).rounded())
    let fraction = String(digits % 10000)
    let zeros = String(repeating: "0", count: 4 - fraction.count)
    return error.isFinite ? "\(digits / 10000).\(zeros)\(fraction) %" : "\(error)"
  }

  private func write(_ rows: [Row], to path: String) throws {
    let items = rows.map { row in
      JSON.object([
        "input": JSON.text(row.input), "precision": JSON.text(row.precision.rawValue),
        "headDimension": "\(row.dimension)", "call": JSON.text(row.call),
        "sameRecipe": JSON.text("\(row.sameRecipe)"), "relativeL1": JSON.text("\(row.gpu)"),
        "relativeL1CPU": JSON.text("\(row.cpu)"), "isRight": "\(row.isRight)",
      ])
    }
    try TextFile.write(JSON.list(items) + "\n", to: path)
  }
}
