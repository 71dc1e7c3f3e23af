import AttentionTestSupport
import IntFlashAttention
import Testing

/// The bounds that each precision states, on real activations and on random data.
@Suite struct AccuracyGateTests {
  static let layers = ["l00", "l07", "l15", "l29"]
  static let precisions = CPUBackendTests.precisions

  /// Optimised code checks all of a file, unoptimised code as many tokens as it can in seconds.
  static var tokens: Int {
    #if DEBUG
    200
    #else
    512
    #endif
  }

  /// Fewer tokens have larger errors; the bounds of the whole files do not hold for them.
  private func bound(_ precision: Precision) -> (worst: Double, mean: Double) {
    Self.tokens == 512
      ? precision.knownActivationsBound : (precision.gate.worst, precision.gate.mean)
  }

  private func inputs(_ layer: String) throws -> VectorFile {
    try vectors("activations_\(layer)", tokens: Self.tokens)
  }

  @Test func activationsOfALanguageModel() throws {
    var errors: [Precision: [Double]] = [:]
    for layer in Self.layers {
      let file = try inputs(layer)
      let exact = try file.inputs.exact(file.options)
      for precision in Self.precisions {
        let result = try file.inputs.attend(precision.recipe, file.options, on: CPUBackend())
        let report = AccuracyReport(result.output, against: exact.output)
        #expect(report.relativeL1 <= bound(precision).worst, "\(precision), \(layer)")
        #expect(report.cosine >= precision.gate.cosine, "\(precision), \(layer)")
        errors[precision, default: []].append(report.relativeL1)
      }
    }
    for (precision, errors) in errors {
      let mean = errors.reduce(0, +) / Double(errors.count)
      #expect(mean <= bound(precision).mean, "\(precision)")
    }
    // What the default is for: an eighth of the paper's error.
    let ours = try #require(errors[.int8]).reduce(0, +)
    #expect(try #require(errors[.int8Paper]).reduce(0, +) >= 6 * ours)
  }

  /// Sixteen bits of P where a row ends take a tenth of the error of a whole file, more of early rows.
  @Test(arguments: [QuantizationRecipe.Exponential.table64, .exact])
  func aFinerLastTileIsCloser(_ exponential: QuantizationRecipe.Exponential) throws {
    var backends: [any AttentionBackend] = [ReferenceBackend()]
    if exponential == .table64 { backends.append(CPUBackend()) }
    var recipe = Precision.int8.recipe
    recipe.exponential = exponential
    var plain = recipe
    plain.refinesLastTile = false
    for backend in backends {
      var errors = (finer: 0.0, plain: 0.0)
      for layer in Self.layers {
        let file = try inputs(layer)
        let exact = try file.inputs.exact(file.options).output
        let finer = try file.inputs.attend(recipe, file.options, on: backend)
        let other = try file.inputs.attend(plain, file.options, on: backend)
        errors.finer += AccuracyReport(finer.output, against: exact).relativeL1
        errors.plain += AccuracyReport(other.output, against: exact).relativeL1
      }
      #expect(errors.finer < 0.95 * errors.plain, "\(backend.name)")
    }
  }

  @Test(arguments: precisions)
  func theDistanceToTheSpecification(_ precision: Precision) throws {
    let file = try inputs("l15")
    let result = try file.inputs.attend(precision.recipe, file.options, on: CPUBackend())
    let specified = try file.inputs.attend(
      precision.specification,
      file.options,
      on: ReferenceBackend()
    )
    let report = AccuracyReport(result.output, against: specified.output)
    #expect(report.relativeL1 <= precision.gate.specification)
  }

  @Test(arguments: precisions)
  func normalAndUniformData(_ precision: Precision) throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 100,
      keyValueLength: 2 * Self.tokens,
      headDimension: 64
    )
    let normal = TestInputs(shape)
    #expect(try error(normal, precision) <= precision.gate.normal(keyValueLength: 1024))
    guard let bound = precision.gate.uniform else { return }
    var random = TestRandom(seed: 8)
    var uniform = normal
    uniform.query = normal.query.map { _ in random.uniform() - 0.5 }
    uniform.key = normal.key.map { _ in random.uniform() - 0.5 }
    uniform.value = normal.value.map { _ in random.uniform() - 0.5 }
    #expect(try error(uniform, precision) <= bound)
  }

  private func error(_ inputs: TestInputs, _ precision: Precision) throws -> Double {
    let result = try inputs.attend(precision.recipe, on: CPUBackend())
    return AccuracyReport(result.output, against: try inputs.exact().output).relativeL1
  }
}
