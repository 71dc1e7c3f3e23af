/// Everything that decides how a call is computed, and nothing of its data.
///
/// Equal descriptors give equal kernels: it is the key of every cache.
public struct AttentionDescriptor: Hashable, Sendable {
  /// Counts and sizes.
  public let shape: AttentionShape
  /// The sequence of operations.
  public let recipe: QuantizationRecipe
  /// Scale, cap and mask.
  public let options: AttentionOptions

  /// Checks the parts and puts them together.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument` for an option or a recipe that
  ///   contradicts itself, `.shapeMismatch` for blocks that do not cover the shape.
  public init(
    shape: AttentionShape,
    recipe: QuantizationRecipe,
    options: AttentionOptions
  ) throws(AttentionError) {
    try options.validate()
    try recipe.validate()
    try options.blocks?.validate(shape)
    self.shape = shape
    self.recipe = recipe
    self.options = options
  }

  /// The factor of q · k, in natural logarithm units.
  public var softmaxScale: Float {
    options.softmaxScale ?? 1 / Float(shape.headDimension).squareRoot()
  }

  /// Operations of the two products by the field's convention: 4 · B · Hq · Nq · Nk · D, or what the
  /// mask leaves of it.
  public var operationCount: Double {
    let perKey = 2 * Double(shape.headDimension + shape.valueDimension)
    var visible = 0.0
    if options.mask == .full, options.blocks == nil {
      visible = Double(shape.queryLength) * Double(shape.keyValueLength)
    } else {
      for row in 0..<shape.queryLength {
        let keys = options.mask.visibleKeys(
          row: row,
          queryLength: shape.queryLength,
          keyValueLength: shape.keyValueLength
        )
        visible += Double(options.blocks?.visibleCount(row: row, keys) ?? keys.count)
      }
    }
    return Double(shape.batchCount * shape.queryHeadCount) * visible * perKey
  }
}
